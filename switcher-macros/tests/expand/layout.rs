/// The documentation of the struct is its own business.
#[repr(C)]
#[derive(AsmLayout)]
pub struct Stacks {
    /// Which stack is in use.
    ///
    /// Only the first line reaches listings.
    pub current: u32,
    _reserved: [u16; 2],
    pub(crate) sp0: Split64,
    r#type: Option<core::num::NonZero<u64>>,
}
