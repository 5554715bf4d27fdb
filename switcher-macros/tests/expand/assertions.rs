#[repr(C, align(64))]
#[derive(AsmLayout)]
#[asm(size = 0x80)]
#[asm(align = 64)]
pub struct PerCpu {
    /// The hardware's.
    #[asm(nested, at = 0)]
    pub tss: Tss,
    #[asm(at = 0x68)]
    _reserved: u64,
}
