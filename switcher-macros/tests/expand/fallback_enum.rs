#[repr(C)]
#[derive(AsmLayout)]
enum Enum {
    Variant,
}
