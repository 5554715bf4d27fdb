//! Makes the linker's arguments for a bare-metal image.
//!
//! A package with a bare-metal binary depends on `hw-platform`, and its build script passes every
//! one of the semicolon-separated arguments in `DEP_HW_PLATFORM_LINK_ARGS` on to the linker: see
//! `examples/minimal-host/build.rs`.

use std::env;
use std::path::Path;

fn main() {
    let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".into());
    let script = Path::new(&directory).join("image.ld");
    let script = script.display();
    let arguments = [
        // There is no C start-up code and no C library: boot.rs is the start, and linkage.rs has
        // the few functions that `core` expects of a C library.
        "-nostartfiles".to_string(),
        "-nostdlib".to_string(),
        // The addresses in image.ld are final, as nobody would process relocations.
        "-static".to_string(),
        "-no-pie".to_string(),
        format!("-Wl,-T,{script}"),
        "-Wl,--build-id=none".to_string(),
        // Multiboot's a.out kludge (boot.rs) takes the file as one piece: the distance between two
        // sections must be the same in the file as in memory. This keeps the linker from padding.
        "-Wl,-z,max-page-size=4096".to_string(),
        "-Wl,-z,norelro".to_string(),
        "-Wl,-z,noexecstack".to_string(),
        "-Wl,--no-eh-frame-hdr".to_string(),
    ];
    println!("cargo::metadata=link_args={}", arguments.join(";"));
    println!("cargo::rerun-if-changed=image.ld");
    println!("cargo::rerun-if-changed=build.rs");
}
