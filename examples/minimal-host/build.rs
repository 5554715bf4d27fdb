//! Passes the arguments on to the linker that `hw-platform` has for bare-metal images.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(arguments) = env::var("DEP_HW_PLATFORM_LINK_ARGS") {
        for argument in arguments.split(';') {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
