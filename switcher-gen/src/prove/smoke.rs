#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::machine::Concrete;
    use crate::{Image, Variant};
    struct Rand(u64);
    impl Source<Concrete> for Rand {
        fn value(&mut self, _d: &Concrete, name: &str, bits: u32) -> u64 {
            let mut h = self.0;
            for b in name.bytes() {
                h = (h ^ u64::from(b)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                h ^= h >> 29;
            }
            let v = match name {
                "host.gs_base" => 0xFFFF_8880_0000_0000,
                "sp0" => 0xFFFF_8881_0000_0000,
                "pvcs" => 0xFFFF_8882_0000_0000,
                "host.rsp" => 0xFFFF_8883_0000_0000,
                "ist" => 0xFFFF_8884_0000_0000,
                "tss_extra.switch_flags" => 1 << (h & 1),
                "tss_extra.smod_entry" | "tss_extra.smod_gsbase" | "guest.gs_base" => h >> 20,
                "frame.cs" => 0x33,
                "frame.ss" => 0x2b,
                "pvcs.user_cs" => 0x33,
                "pvcs.user_ss" => 0x2b,
                "tss_extra.retu_rip" | "guest.rip" => 0x1234,
                _ => h,
            };
            if bits < 64 { v & ((1 << bits) - 1) } else { v }
        }
    }
    #[test]
    fn smoke() {
        let d = Concrete::default();
        for v in Variant::all() {
            let t = Target::image(&Image::new(&v).unwrap());
            for seed in 0..20 {
                let s = saved(&d, &t, &mut Rand(seed)).unwrap().unwrap();
                for th in Theorem::ALL {
                    let sv = if th == Theorem::EnterGuest { None } else { Some(&s) };
                    let r = run(&d, &t, th, Neighbour::Quiet, &mut Rand(seed), sv, |a| {
                        for (n, b) in a {
                            assert!(b, "{n}");
                        }
                    })
                    .unwrap();
                    for g in &r.goals {
                        assert!(g.holds, "{v} {th:?} {} {g:x?} {:x?}", r.end, r.trace);
                    }
                    if seed == 0 {
                        println!(
                            "{v} {} {} goals {} steps: {}",
                            th.name(),
                            r.goals.len(),
                            r.trace.len(),
                            r.end
                        );
                    }
                }
            }
        }
    }
}
#[cfg(test)]
mod symtests {
    use super::super::*;
    use crate::{Image, Variant};
    #[test]
    fn symsmoke() {
        let p = Prover::default();
        for v in Variant::all() {
            let t = Target::image(&Image::new(&v).unwrap());
            let now = std::time::Instant::now();
            match p.prove(&t).unwrap() {
                Verdict::Proved(r) => {
                    for x in &r {
                        println!(
                            "{v} {} {:?} paths {} goals {} solver {}",
                            x.theorem.name(),
                            x.neighbour,
                            x.paths,
                            x.goals,
                            x.by_solver
                        );
                    }
                }
                Verdict::Refuted(c) => {
                    println!("{v} {c}");
                    println!("{:?}", p.statistics());
                    panic!();
                }
                Verdict::Unknown(u) => panic!("{v} {u}"),
            }
            println!("{v} {:?}", now.elapsed());
            println!("{:?}", p.statistics());
        }
    }
}
#[cfg(test)]
#[path = "../../tests/gas/mod.rs"]
mod gas;
#[cfg(test)]
mod gastest {
    use super::super::*;
    use super::gas;
    use crate::Variant;
    #[test]
    fn gassmoke() {
        let p = Prover::default();
        let f = crate::elf::read(&gas::assemble(gas::SWITCHER, &[])).unwrap();
        let t = Target::foreign(&f, Setting::from(&Variant::REFERENCE)).unwrap();
            let now = std::time::Instant::now();
            match p.prove(&t).unwrap() {
                Verdict::Proved(r) => { for x in &r { println!("{} {:?} paths {} goals {} solver {}", x.theorem.name(), x.neighbour, x.paths, x.goals, x.by_solver); } }
                Verdict::Refuted(c) => { println!("{c}"); println!("{:?}", p.statistics()); panic!(); }
                Verdict::Unknown(u) => panic!("{u}"),
            }
            println!("{:?}", now.elapsed());
            println!("{:?}", p.statistics());
    }
}
