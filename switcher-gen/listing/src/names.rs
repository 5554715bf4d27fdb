//! Names for numbers: fields for displacements, source text for immediates.

use switcher_gen::layout::{AsmLayout, Layout, PerCpu};

/// What `size` bytes at `offset` of `layout` are called: `pvcs.rip`, `pvcs.user_cs:user_ss` for an
/// access that covers two fields. Fields of the per-CPU block go without its name, because `gs:`
/// stands in front.
#[must_use]
pub fn field(layout: &Layout, offset: usize, size: usize) -> Option<String> {
    let path = path(layout, offset, size)?;
    if layout == PerCpu::LAYOUT {
        return Some(path);
    }
    Some(format!("{}.{path}", snake_case(layout.name)))
}

fn path(layout: &Layout, offset: usize, size: usize) -> Option<String> {
    let (i, field) = layout.fields.iter().enumerate().rfind(|(_, f)| f.offset <= offset)?;
    let inner = offset - field.offset;
    if let Some(nested) = field.nested {
        return Some(format!("{}.{}", field.name, path(nested, inner, size)?));
    }
    if inner != 0 {
        return None;
    }
    // Wider than the field: it and those after it, if they fill the access.
    let mut names = Vec::new();
    let mut end = offset;
    for field in &layout.fields[i..] {
        if field.offset != end || field.nested.is_some() {
            return None;
        }
        names.push(field.name);
        end += field.size;
        if end >= offset + size {
            break;
        }
    }
    let is_whole = end == offset + size || names.len() == 1 && end > offset + size;
    is_whole.then(|| names.join(":"))
}

/// `TssExtra` as `tss_extra`: a struct's name as a variable of that type would have it.
pub fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// An immediate as it was written in the source, without the conversions that an operand's type
/// asked for.
pub(super) fn immediate(text: &str) -> &str {
    const CONVERSIONS: [&str; 13] = [
        ".imm32()",
        ".imm8()",
        ".into()",
        ".cast_signed()",
        ".cast_unsigned()",
        " as i8",
        " as i16",
        " as i32",
        " as i64",
        " as u8",
        " as u16",
        " as u32",
        " as u64",
    ];
    let mut text = text;
    while let Some(shorter) = CONVERSIONS.iter().find_map(|c| text.strip_suffix(c)) {
        text = shorter;
    }
    text
}

/// Whether an immediate has one value in all variants: it names constants and nothing else.
pub(super) fn is_constant(text: &str) -> bool {
    !text.contains('(') && text.contains(|c: char| c.is_ascii_uppercase())
}

/// The part of a source path that tells files of this crate apart.
pub(super) fn source_file(path: &str) -> &str {
    path.rsplit_once("src/").map_or(path, |(_, file)| file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_gen::layout::{OrigAx, PtRegs, Pvcs};

    #[test]
    fn a_field_is_found_through_nested_structs() {
        let name = |offset, size| field(PerCpu::LAYOUT, offset, size);
        assert_eq!(name(0x04, 8).as_deref(), Some("tss.sp0"));
        assert_eq!(name(0xC0, 8).as_deref(), Some("tss_extra.switch_flags"));
        assert_eq!(field(PtRegs::LAYOUT, 0x70, 8).as_deref(), Some("pt_regs.rdi"));
    }

    #[test]
    fn the_size_of_the_access_counts() {
        let name = |offset, size| field(Pvcs::LAYOUT, offset, size);
        assert_eq!(name(0x40, 2).as_deref(), Some("pvcs.user_cs"));
        assert_eq!(name(0x40, 4).as_deref(), Some("pvcs.user_cs:user_ss"));
        assert_eq!(name(0x60, 4).as_deref(), Some("pvcs.rip"));
        assert_eq!(field(OrigAx::LAYOUT, 4, 4).as_deref(), Some("orig_ax.reason"));
    }

    #[test]
    fn what_no_field_explains_has_no_name() {
        assert_eq!(field(Pvcs::LAYOUT, 0x41, 1), None);
        assert_eq!(field(Pvcs::LAYOUT, 0x40, 3), None);
        assert_eq!(field(Pvcs::LAYOUT, 0x78, 16), None);
        assert_eq!(field(Pvcs::LAYOUT, 0x80, 8), None);
    }

    #[test]
    fn immediates_lose_their_conversions() {
        assert_eq!(immediate("SwitchFlags::NO_DS_TO_SMOD.imm32()"), "SwitchFlags::NO_DS_TO_SMOD");
        assert_eq!(immediate("selectors.user_cs().into()"), "selectors.user_cs()");
        assert_eq!(immediate("size_of::<IretFrame>() as i8"), "size_of::<IretFrame>()");
        assert_eq!(immediate("a.b().cast_signed() as i32"), "a.b()");
        assert!(is_constant("ExitReason::Syscall") && is_constant("-ENOSYS"));
        assert!(!is_constant("selectors.user_cs()") && !is_constant("paging"));
    }

    #[test]
    fn sources_are_named_from_the_crates_root() {
        assert_eq!(source_file("switcher-gen/src/emit/to_smod.rs"), "emit/to_smod.rs");
        assert_eq!(source_file("/root/src/switcher/src/emit/mod.rs"), "emit/mod.rs");
        assert_eq!(source_file("host.rs"), "host.rs");
    }
}
