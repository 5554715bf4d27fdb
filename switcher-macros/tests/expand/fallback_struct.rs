#[derive(AsmLayout)]
pub struct NoRepr {
    /// Its constant stays, for the sake of its users.
    #[asm(at = 0)]
    pub field: u64,
    _padding: u32,
}
