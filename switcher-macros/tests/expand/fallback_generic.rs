#[repr(C)]
#[derive(AsmLayout)]
struct Generic<'a, T: Copy, const N: usize>
where
    T: Send,
{
    items: &'a [T; N],
}
