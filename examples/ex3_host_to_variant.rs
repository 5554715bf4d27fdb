//! Step 3. Host -> variant: a host's CPU and its control registers decide what is emitted.

use std::error::Error;

use raw_cpuid::CpuIdReaderNative;
use switcher_gen::arch::{HostFeatures, HostState, PagingMode, Selectors, Vendor};
use switcher_gen::{Image, Variant};

fn main() -> Result<(), Box<dyn Error>> {
    // In ring 0, `switcher-runtime` reads the control registers; this example assumes values.
    let state = HostState::PLAIN;
    let features = HostFeatures::from_cpuid(CpuIdReaderNative, state);
    match Variant::for_host(&features, Selectors::DEFAULT) {
        Ok(variant) => println!("{} gets {variant}", features.brand()),
        Err(unfit) => println!("{}: {unfit}", features.brand()),
    }

    // Every legal combination without mitigations, and the size of its code.
    for variant in Variant::unmitigated() {
        let image = Image::new(&variant)?;
        println!("{variant:24} {:4} bytes  {}", image.bytes().len(), image.fingerprint());
    }

    // A configuration that no CPU has cannot be built.
    if let Err(illegal) = Variant::builder(Vendor::Amd, PagingMode::FourLevel).ibt(true).build() {
        println!("refused: {illegal}");
    }
    Ok(())
}
