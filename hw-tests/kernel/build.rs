//! Links the binary as `hw-platform` says bare-metal images are linked.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(arguments) = env::var("DEP_HW_PLATFORM_LINK_ARGS") {
        for argument in arguments.split(';') {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
