//! scratch
use switcher_gen::{Variant, native};
#[test]
fn tour() {
    for v in Variant::all() {
        let t = std::time::Instant::now();
        match native::tour(&v) {
            Ok(r) => println!("{v}: {:?} {}\n{}", t.elapsed(), r.paths.iter().map(|p| format!("{}/{}", p.executed, p.kernel_2024)).collect::<Vec<_>>().join(" "), r.ran()),
            Err(e) => println!("{v}: {e} {e:?}"),
        }
    }
}
