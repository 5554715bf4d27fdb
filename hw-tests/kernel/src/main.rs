//! The case runner: a bare-metal host hypervisor that reports over the serial port.

#![no_std]
#![no_main]

use hw_kernel::report::Report;
use hw_kernel::{Platform, selftest};
use hw_protocol::SELFTESTS;

hw_kernel::kernel_main!(main);

fn main(platform: Platform) -> ! {
    let mut report = Report::begin(&platform, SELFTESTS.len());
    selftest::all(&mut report);
    report.end()
}
