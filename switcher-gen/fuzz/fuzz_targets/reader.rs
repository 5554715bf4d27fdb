//! Fuzzes the ELF reader: see `switcher_fuzz::reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    switcher_fuzz::reader::check(data);
});
