//! x
use switcher_gen::{Image,Variant,listing::*};
fn main() { let i=Image::new(&Variant::REFERENCE).unwrap(); let l=Listing::new(&i,&ListingOptions{source:true,base:None}).unwrap(); print!("{l}"); println!("{}", l.outline().len()); }
