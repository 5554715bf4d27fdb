//! Step 4. Code -> listing: the bytes, decoded by an independent disassembler, with the names of
//! the structs' fields and the lines of the emitters.

use std::error::Error;

use switcher_gen::{Image, Variant};
use switcher_listing::{Line, Listing, ListingOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let image = Image::new(&Variant::REFERENCE)?;
    let listing = Listing::new(&image, &ListingOptions { source: true, ..Default::default() })?;

    // Which instructions access the page that the guest may change at any moment?
    for line in &listing.lines {
        if let Line::Instruction(instruction) = line {
            let operands = instruction.operands.join(", ");
            if operands.contains("[pvcs.") {
                let source = instruction.source.as_ref();
                let place = source.map_or(String::new(), |s| format!("{}:{}", s.file, s.line));
                println!(
                    "{:04x}  {:6} {operands:60} {place}",
                    instruction.address, instruction.mnemonic
                );
            }
        }
    }
    Ok(())
}
