//! Fuzzes the decoders and the model of a CPU: see `switcher_fuzz::step`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    switcher_fuzz::step::check(data);
});
