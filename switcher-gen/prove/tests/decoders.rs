//! Two decoders read every instruction that is emitted and every form whose semantics is compared
//! with CPUs (hazards.md, row 49): both as the same operation, and none has a prefix for nothing.
//!
//! What they disagree about, and that it is refused, is in the tests of
//! `switcher-gen/model/src/program.rs`.

use std::collections::BTreeSet;

use hw_vectors::forms;
use switcher_gen::{Image, Variant};
use switcher_model::Program;
use switcher_prove::Target;

/// Every instruction of `program`, one after the other.
fn check(name: &str, program: &Program, met: &mut BTreeSet<Vec<u8>>) {
    let end = program.base() + program.first_piece().len() as u64;
    let mut at = program.base();
    while at < end {
        match program.at(at).expect("within") {
            Ok(op) => {
                let place = |address: u64| (address - program.base()) as usize;
                met.insert(program.first_piece()[place(at)..place(op.next)].to_vec());
                at = op.next;
            }
            Err(why) => panic!("{name}: {why}"),
        }
    }
}

#[test]
fn both_read_what_is_emitted() {
    let mut met = BTreeSet::new();
    for variant in Variant::representative() {
        let target = Target::image(&Image::new(&variant).unwrap());
        check(&variant.to_string(), &target.program, &mut met);
    }
    println!("{} instructions", met.len());
    assert!(met.len() > 500);
}

#[test]
fn both_read_every_form_of_the_vectors() {
    let lists = [forms::everywhere(), forms::iretq_within_cpl_3(), forms::refused_at_cpl_3()];
    let mut met = BTreeSet::new();
    for form in lists.into_iter().flatten().chain(forms::ring_0()) {
        let code = form.assemble(0x1000).unwrap();
        check(&form.name, &Program::new(0x1000, code), &mut met);
    }
    println!("{} instructions", met.len());
    assert!(met.len() > 500);
}
