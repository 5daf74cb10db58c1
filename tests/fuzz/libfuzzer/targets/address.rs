#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| llmtune_fuzz::address(input));
