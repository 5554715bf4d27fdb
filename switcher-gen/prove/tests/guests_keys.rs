//! Kernels that decide by guest whether it has protection keys: a field of the switcher's data says
//! it, and the code asks it where ours knows it by the variant.

mod attack;
mod gas;

use attack::arms::TO_SMOD;
use attack::{proved, refuted};
use switcher_gen::layout::{Pvcs, TssExtra};
use switcher_gen::{Variant, layout::AsmLayout};
use switcher_prove::elf;
use switcher_prove::{ExtraField, KnownField, Places, Prover, Setting, Target, Verdict};

const TO_UMOD: &str = "\tmovq\tPVCS_R11(%rdx), %r11\n\tmovq\tPVCS_RCX(%rdx), %rcx\n";
/// Where `pku_on` lies, behind all that ours has.
const PKU_ON: u64 = 0x80;

/// The switcher written by hand, with what is to be done about PKRU on its ways to smod and to
/// umod.
fn switcher(to_smod: &str, to_umod: &str, has_field: bool) -> Target {
    let fields = format!(
        "\t.set\tSMOD_PKRU, GS_TSS_EXTRA + {:#x}\n\t.set\tPKU_ON, GS_TSS_EXTRA + {PKU_ON:#x}\n\
         \t.set\tPVCS_PKRU, {:#x}\n",
        TssExtra::smod_pkru.bytes(),
        Pvcs::pkru.bytes(),
    );
    let to_smod = format!("{to_smod}{TO_SMOD}");
    let to_umod = format!("{to_umod}{TO_UMOD}");
    let source = gas::replaced(gas::SWITCHER, &[(TO_SMOD, &to_smod), (TO_UMOD, &to_umod)]);
    let foreign = elf::read(&gas::assemble(&format!("{fields}{source}"), &[])).unwrap();
    let own = ExtraField::ALL.iter().filter(|field| field.name() != "pku_on");
    let own = own.map(|field| {
        let at = Places::<ExtraField>::ours().at(*field).unwrap();
        (field.name(), at.cast_unsigned(), None)
    });
    let places = own.chain(has_field.then_some(("pku_on", PKU_ON, None)));
    let places = Places::new(Some(0x100), places).unwrap();
    let variant: Variant = "intel-4level-pku".parse().unwrap();
    let setting = Setting::from(&variant).with_extra(places).unwrap();
    assert!(TssExtra::LAYOUT.size as u64 <= PKU_ON);
    Target::foreign(&foreign, setting).unwrap()
}

/// PKRU of umod goes to the PVCS, and smod's is loaded; RDX points to the PVCS.
const SAVE: &str = "\tpushq\t%rcx\n\tpushq\t%rdx\n\txorl\t%ecx, %ecx\n\trdpkru\n\tpopq\t%rdx\n\
                    \tmovl\t%eax, PVCS_PKRU(%rdx)\n\tpushq\t%rdx\n\tmovl\t%gs:SMOD_PKRU, %eax\n\
                    \txorl\t%edx, %edx\n\twrpkru\n\tpopq\t%rdx\n\tpopq\t%rcx\n";
/// Umod's is loaded; RCX and R11 are free, and GS is the guest's already.
const LOAD: &str = "\tpushq\t%rax\n\tpushq\t%rdx\n\tmovl\tPVCS_PKRU(%rdx), %eax\n\txorl\t%ecx, %ecx\n\
                    \txorl\t%edx, %edx\n\twrpkru\n\tpopq\t%rdx\n\tpopq\t%rax\n";

fn asked(code: &str) -> String {
    format!("\tcmpl\t$0, %gs:PKU_ON\n\tjz\t5f\n{code}5:\n")
}

/// GS is the guest's on the way to umod.
fn asked_later(code: &str) -> String {
    format!("\tswapgs\n\tcmpl\t$0, %gs:PKU_ON\n\tswapgs\n\tlfence\n\tjz\t5f\n{code}5:\n")
}

#[test]
fn a_guest_with_protection_keys_or_without() {
    let judged = |to_smod: &str, to_umod: &str| switcher(to_smod, to_umod, true);
    let right = judged(&asked(SAVE), &asked_later(LOAD));
    proved("PKRU", &right);
    // Without asking, it is right for one kind of guests.
    refuted("PKRU", &judged(SAVE, LOAD), "pkru");
    refuted("PKRU", &judged("", ""), "pkru");
    // Each way by itself, and the wrong way round.
    refuted("PKRU", &judged(&asked(SAVE), LOAD), "pkru");
    refuted("PKRU", &judged(&asked(SAVE).replace("jz", "jnz"), &asked_later(LOAD)), "pkru");
    // The field is the host's.
    let changed = format!("{}\tmovl\t$1, %gs:PKU_ON\n", asked(SAVE));
    refuted("PKRU", &judged(&changed, &asked_later(LOAD)), "kept");
}

#[test]
fn without_the_field_every_guest_has_them() {
    proved("PKRU", &switcher(SAVE, LOAD, false));
    // What lies there is then not known, and a secret.
    let asks = switcher(&asked(SAVE), &asked_later(LOAD), false);
    assert!(matches!(Prover::default().prove(&asks), Verdict::Refuted(_)));
}
