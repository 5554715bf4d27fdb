//! What others have assembled: the arguments that say what a file is, and how it becomes targets.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use switcher_gen::Variant;
use switcher_gen::asm::Window;
use switcher_gen::layout::{Revision, Tss};
use switcher_model::Features;
use switcher_prove::elf::{self, Choice, Feature, Foreign, Gates, Request, RequestError};
use switcher_prove::{BlockOffsets, Clauses, Contract, Profile, Room, Target};

use crate::data_place::DataPlace;
use crate::emit::number;
use crate::gate;
use crate::host_data::HostDataArgs;
use crate::layout::Layout;
use crate::output::Failure;
use crate::subject::Subject;
use crate::theirs;

/// What others have assembled, and what has to be said of it. Its host is said by the command's
/// argument `variant`.
#[derive(clap::Args)]
pub(crate) struct ForeignArgs {
    /// Somebody else's code: an object or a linked file with the symbols of our images; `--variant`
    /// says for which host it is meant
    #[arg(long, value_name = "FILE", requires = "variant")]
    elf: Option<PathBuf>,
    /// The layout of the PVCS that the code of `--elf` is for [default: the variant's]
    #[arg(long, value_name = "REVISION", value_enum, requires = "elf")]
    pvcs: Option<Pvcs>,
    /// Where the code of `--elf` has the TSS, relative to GS base: a number, such as 0x6000, -0x40
    /// or an address that `nm` prints; or a symbol, such as cpu_tss_rw or cpu_tss_rw+0x80
    /// [default: 0]
    #[arg(
        long,
        value_name = "PLACE",
        value_parser = str::parse::<DataPlace>,
        allow_hyphen_values = true,
        requires = "elf"
    )]
    gs_tss: Option<DataPlace>,
    /// Where it has the switcher's data, likewise [default: 0x80]
    #[arg(
        long,
        value_name = "PLACE",
        value_parser = str::parse::<DataPlace>,
        allow_hyphen_values = true,
        requires = "elf"
    )]
    gs_tss_extra: Option<DataPlace>,
    /// Where the fields of the TSS, of the switcher's data and of the PVCS lie: DWARF or BTF of a
    /// vmlinux, an object or a module, the kernel's asm-offsets.h, or TOML or JSON. May be
    /// repeated: each file fills what those before it lack; `switcher offsets --from` shows what is
    /// read [default: the profile's, or as ours]
    #[arg(long, value_name = "FILE", requires = "elf")]
    layout: Vec<PathBuf>,
    /// What a struct is called in the files of `--layout`: tss_struct, tss, tss_extra or pvcs, and
    /// its name in C
    #[arg(long = "struct", value_name = "STRUCT=NAME", value_parser = theirs::named, requires = "layout")]
    structs: Vec<theirs::Named>,
    /// What a symbol of ours is called in `--elf`; may be given more than once
    #[arg(long = "symbol", value_name = "OURS=THEIRS", value_parser = renamed, requires = "elf")]
    symbols: Vec<(String, String)>,
    #[command(flatten)]
    data: HostDataArgs,
    /// The kernel that `--elf` is a part of: what its symbols are called, where its data lies, and
    /// what the code around its switcher guarantees; `switcher profiles` shows them
    #[arg(long, value_name = "NAME", value_parser = Profile::named, requires = "elf")]
    profile: Option<&'static Profile>,
    /// A clause that the code around the switcher keeps, besides those of the profile
    #[arg(long, value_name = "CLAUSE", value_parser = Clauses::named, requires = "elf")]
    assume: Vec<Clauses>,
    /// A clause of the profile that it does not keep
    #[arg(long, value_name = "CLAUSE", value_parser = Clauses::named, requires = "elf")]
    waive: Vec<Clauses>,
    /// How many bytes of the stack that TSS.sp0 points to `--elf` may use [default: the profile's]
    #[arg(long, value_name = "BYTES", value_parser = room, requires = "elf")]
    entry_stack: Option<Room>,
    /// How many bytes of its caller's stack it may use [default: the profile's]
    #[arg(long, value_name = "BYTES", value_parser = room, requires = "elf")]
    caller_stack: Option<Room>,
    /// Where the host's handlers of NMIs and machine checks take RSP for the guest's
    /// (`unsafe-stack`) or the root (`guest-root`): START..END, or the address of one instruction;
    /// each a symbol, a symbol and an offset, or a number. All of a kind are given together
    /// [default: the profile's]
    #[arg(long = "window", value_name = "KIND=RANGE", value_parser = str::parse::<WindowArg>, requires = "elf")]
    windows: Vec<WindowArg>,
    /// Where the IDT leads, so that event entries are judged: a vector or a range of them, and the
    /// symbol of the first entry, such as 14=asm_exc_page_fault or
    /// 32-255=irq_entries_start,stride=8; of a range, `stride` says how many bytes each entry lies
    /// after the one before it. May be given more than once: all vectors are needed of which the
    /// file has no stubs [default: the file's stubs; `ist` and `dpl` as ours have them]
    #[arg(
        long = "gate",
        value_name = "VECTOR[-LAST]=SYMBOL[+OFFSET][,stride=N][,ist=N][,dpl=N]",
        value_parser = gate::gates,
        requires = "elf"
    )]
    gates: Vec<Gates>,
    /// How the kernel boots that `--elf` is a part of, as far as what runs depends on it: a feature
    /// of the CPU, by name or by Linux's number, such as smap or 7*32+11; return-thunk; a static
    /// branch by its place, such as branch@.entry.text+0xa, or a key of static branches that is
    /// never flipped once the kernel has booted, such as key@SYMBOL; fineibt, for a kernel that is
    /// built with CONFIG_FINEIBT; call-depth, for one that counts how deep calls are; or linux-6.5
    /// or linux-6.10, for one of that version or a later one. What is not said, and does not follow
    /// from the variant, is judged both ways, or refused if one of them cannot be judged
    #[arg(long, value_name = "CHOICE=on|off", value_parser = choice, requires = "elf")]
    boot: Vec<(Choice, bool)>,
    /// What the CPUs that the code of `--elf` is for have besides what the variant implies
    #[arg(long = "feature", value_name = "NAME", value_parser = str::parse::<Features>, requires = "elf")]
    features: Vec<Features>,
    /// How many instructions a path of `--elf` may have [default: 10000]: more take longer to
    /// prove, and a loop without an end takes as long to be refused
    #[arg(long, value_name = "N", requires = "elf")]
    instructions: Option<NonZeroUsize>,
    /// Take it for granted that sections of `--elf` that name the code, for a purpose that is not
    /// known, do not change it; the verdict says so
    #[arg(long, requires = "elf")]
    assume_unpatched: bool,
}

/// What was read of a file, and what is judged, image by image.
type Images = Vec<(Foreign, Target)>;

/// A layout of the PVCS, as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Pvcs {
    /// Of 2024: smod has a stack of its own
    V2024,
    /// Of 2026: RSP passes through every direct switch
    V2026,
}

impl From<Pvcs> for Revision {
    fn from(pvcs: Pvcs) -> Self {
        match pvcs {
            Pvcs::V2024 => Self::V2024,
            Pvcs::V2026 => Self::V2026,
        }
    }
}

impl ForeignArgs {
    /// The file's name, if one was given.
    pub(crate) fn name(&self) -> Option<String> {
        self.elf.as_ref().map(|path| path.display().to_string())
    }

    /// Whether something is said of a file, for commands that need not have one: that an argument
    /// requires another one does not count where that one conflicts with a third.
    pub(crate) const fn is_used(&self) -> bool {
        let Self { elf, pvcs, gs_tss, gs_tss_extra, symbols, .. } = self;
        let Self { features, instructions, assume_unpatched, profile, assume, .. } = self;
        let Self { waive, entry_stack, caller_stack, windows, boot, .. } = self;
        let Self { layout, structs, data, gates, .. } = self;
        elf.is_some()
            || pvcs.is_some()
            || gs_tss.is_some()
            || gs_tss_extra.is_some()
            || !symbols.is_empty()
            || profile.is_some()
            || !assume.is_empty()
            || !waive.is_empty()
            || entry_stack.is_some()
            || caller_stack.is_some()
            || !windows.is_empty()
            || !gates.is_empty()
            || !boot.is_empty()
            || data.is_used()
            || !layout.is_empty()
            || !structs.is_empty()
            || !features.is_empty()
            || instructions.is_some()
            || *assume_unpatched
    }

    /// The file's code, if one was given, for the host that `variant` is for.
    pub(crate) fn target(&self, variant: &Variant) -> Result<Option<Target>, Failure> {
        Ok(self.subject(variant)?.map(|subject| subject.target))
    }

    /// The same, with what is known of it.
    pub(crate) fn subject(&self, variant: &Variant) -> Result<Option<Subject>, Failure> {
        let mut subjects = self.subjects(variant)?;
        match (subjects.pop(), subjects.pop()) {
            (Some(one), Some(other)) => Err(Failure::Usage(format!(
                "what runs depends on what the kernel finds when it boots: there is `{}`, `{}` and \
                 maybe more; choose one (`--boot`)",
                other.name, one.name
            ))),
            (subject, _) => Ok(subject),
        }
    }

    /// Each image that can run of the file's code; none if no file was given.
    pub(crate) fn subjects(&self, variant: &Variant) -> Result<Vec<Subject>, Failure> {
        let Some(path) = &self.elf else { return Ok(Vec::new()) };
        let layout = self.layout()?;
        let (file, images) = self.read(path, variant, &layout)?;
        let is_one = images.len() == 1;
        let subject = |(foreign, target): (Foreign, Target)| {
            let name = path.display();
            let name = match is_one || foreign.choices.is_empty() {
                true => name.to_string(),
                false => format!("{name} ({})", elf::choices(&foreign.choices)),
            };
            let file =
                file.try_clone().map_err(|error| Failure::failed("cannot keep the file", error))?;
            let file = Some((file, foreign));
            Ok(Subject { name, target, image: None, file, layout: layout.clone() })
        };
        images.into_iter().map(subject).collect()
    }

    /// Where the fields of its structs lie.
    fn layout(&self) -> Result<Layout, Failure> {
        let found = match self.layout.as_slice() {
            [] => None,
            files => Some(theirs::found(files, &self.structs)?),
        };
        let layout = Layout::new(self.profile(), found.as_ref());
        layout.map_err(|error| Failure::Usage(format!("the layout: {error}")))
    }

    fn read(
        &self,
        path: &Path,
        variant: &Variant,
        layout: &Layout,
    ) -> Result<(fs::File, Images), Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::Usage(format!("cannot take {}: {error}", path.display()))
        };
        // What is said by hand goes before the profile.
        let pvcs = self.pvcs.map(Revision::from).or(self.profile().pvcs);
        let profile = Profile { pvcs, extra: &[], ..*self.profile() };
        let setting = profile.setting(variant).and_then(|setting| layout.apply(setting));
        let setting = setting.map_err(|error| Failure::Usage(format!("the layout: {error}")))?;
        let features: Features = self.features.iter().copied().collect();
        // A device might never end.
        if !fs::metadata(path).map_err(|error| wrong(&error))?.is_file() {
            return Err(wrong(&"not a file: give an object or a linked file"));
        }
        let file = fs::File::open(path).map_err(|error| wrong(&error))?;
        let request = self.request(&setting.variant, layout)?;
        let images = elf::images_of(&file, request).map_err(|error| wrong(&error))?;
        let setting = setting.with_contract(self.contract()?);
        let target = |mut foreign: Foreign| {
            let block = self.block(&foreign, layout, setting.extra_size())?;
            let features = features | foreign.features();
            let setting = setting.with_block(block).with_features(features);
            if self.assume_unpatched {
                foreign.assume_unpatched();
            }
            let target = Target::foreign(&foreign, setting).map_err(|error| wrong(&error))?;
            let data = self.data.resolve(&foreign.data)?;
            let target = target.with_data(data).map_err(|error| wrong(&error))?;
            let limit = self.instructions.map_or(target.limit, NonZeroUsize::get);
            let target = self.with_windows(target.with_limit(limit), &foreign)?;
            Ok((foreign, target))
        };
        let images: Result<Images, Failure> = images.into_iter().map(target).collect();
        Ok((file, images?))
    }

    /// The kernel that the file is a part of.
    fn profile(&self) -> &'static Profile {
        const OURS: Profile = Profile::ALL[0];
        self.profile.unwrap_or(&OURS)
    }

    /// What the code around the switcher guarantees.
    fn contract(&self) -> Result<Contract, Failure> {
        let profile = self.profile();
        let mut contract = profile.contract;
        let waived: Clauses = self.waive.iter().copied().collect();
        let assumed: Clauses = self.assume.iter().copied().collect();
        if let Some((name, _)) = waived.difference(contract.clauses | assumed).texts().next() {
            return Err(Failure::Usage(format!(
                "`--waive {name}`: the profile `{}` has no such clause",
                profile.name
            )));
        }
        if let Some((name, _)) = waived.intersection(assumed).texts().next() {
            return Err(Failure::Usage(format!(
                "`{name}` is both assumed and waived: leave one of `--assume` and `--waive`"
            )));
        }
        contract.clauses = (contract.clauses | assumed) - waived;
        contract.entry_stack = self.entry_stack.unwrap_or(contract.entry_stack);
        contract.caller_stack = self.caller_stack.unwrap_or(contract.caller_stack);
        Ok(contract)
    }

    /// With the windows that the host is told of.
    fn with_windows(&self, target: Target, foreign: &Foreign) -> Result<Target, Failure> {
        let address = |place: &DataPlace| match place {
            DataPlace::Number(number) => Ok(number.cast_unsigned()),
            DataPlace::Symbol(name, offset) => match foreign.symbols.get(name) {
                Some(address) => Ok(address.wrapping_add_signed(*offset)),
                None => Err(Failure::Usage(format!(
                    "`--window`: the code that is reached has no symbol `{name}`"
                ))),
            },
        };
        // An instruction has 15 bytes at most, and no other begins within it.
        let one = |start: u64| start..start.wrapping_add(1);
        let mut windows = BTreeMap::<Window, Vec<Range<u64>>>::new();
        for WindowArg { window, start, end } in &self.windows {
            let start = address(start)?;
            let range = match end {
                Some(end) => start..address(end)?,
                None => one(start),
            };
            if range.is_empty() {
                return Err(Failure::Usage(format!(
                    "`--window`: {:#x}..{:#x} holds nothing",
                    range.start, range.end
                )));
            }
            let is_code = |at: u64| {
                let mut sections = foreign.sections.iter();
                sections.any(|section| section.range.contains(&at))
            };
            if !is_code(range.start) || !is_code(range.end.wrapping_sub(1)) {
                return Err(Failure::Usage(format!(
                    "`--window`: {:#x}..{:#x} is not in the code's section",
                    range.start, range.end
                )));
            }
            windows.entry(*window).or_default().push(range);
        }
        let target = match windows.contains_key(&Window::UnsafeStack) {
            true => target,
            false => self.profile().with_windows(target, foreign),
        };
        let all = windows.into_iter();
        Ok(all.fold(target, |target, (window, ranges)| target.with_window(window, ranges)))
    }

    /// What is asked of the file, on hosts that `variant` is for.
    fn request(&self, variant: &Variant, layout: &Layout) -> Result<Request, Failure> {
        let wrong = |error: RequestError| Failure::Usage(format!("`--symbol`: {error}"));
        let mut request = Request::default();
        // What is said by hand goes before the profile.
        let is_said = |ours: &str| self.symbols.iter().any(|(name, _)| name == ours);
        let known = self.profile().symbols.iter().filter(|(ours, _)| !is_said(ours));
        let said = self.symbols.iter().map(|(ours, theirs)| (ours.as_str(), theirs.as_str()));
        for (ours, theirs) in said.chain(known.copied()) {
            request = request.with_symbol(ours, theirs).map_err(wrong)?;
        }
        let (tss, extra) = self.places(layout);
        let data = [&tss, &extra].into_iter().filter_map(|place| place.symbol());
        request = self.data.ask(data.fold(request, Request::with_data));
        // Handlers go by these labels, so that each must be the only one of its name.
        let places = self.windows.iter().flat_map(|it| [Some(&it.start), it.end.as_ref()]);
        let labels = places.flatten().filter_map(DataPlace::symbol);
        request = labels.fold(request, Request::with_label);
        request = self.profile().labels().fold(request, Request::with_label);
        for gates in &self.gates {
            let with_gates = request.with_gates(gates.clone());
            request = with_gates.map_err(|error| Failure::Usage(format!("`--gate`: {error}")))?;
        }
        if self.features.iter().any(|features| features.contains(Features::SMAP)) {
            request = request.with_choice(Choice::Feature(Feature::SMAP), true);
        }
        let of_variant = Request::default().on(variant);
        for (number, (choice, is_on)) in self.boot.iter().enumerate() {
            let twice = self.boot[..number].iter().any(|(other, _)| other == choice);
            let differs = |says: bool| says != *is_on;
            // Returns have a thunk for the sake of some of a CPU's faults, and a variant knows not
            // all of those: there may be one where the variant needs none.
            let is_more = *choice == Choice::ReturnThunk && *is_on;
            let is_other = of_variant.says(choice).is_some_and(differs) && !is_more;
            let why = match request.says(choice).is_some_and(differs) {
                _ if twice => "is said twice",
                _ if is_other => "is otherwise on the variant's hosts",
                true => "contradicts what else is said",
                false => {
                    request = request.with_choice(choice.clone(), *is_on);
                    continue;
                }
            };
            return Err(Failure::Usage(format!("`--boot {choice}`: it {why}")));
        }
        Ok(request.on(variant))
    }

    /// Where the TSS and the switcher's data lie.
    fn places(&self, layout: &Layout) -> (DataPlace, DataPlace) {
        let default = BlockOffsets::default();
        let (tss, extra) = match self.profile().tss {
            Some((symbol, extra)) => {
                let (tss, extra) =
                    (layout.tss_at.unwrap_or_default(), layout.extra_at.unwrap_or(extra));
                (DataPlace::Symbol(symbol.into(), tss), DataPlace::Symbol(symbol.into(), extra))
            }
            None => (
                DataPlace::Number(layout.tss_at.unwrap_or(default.tss)),
                DataPlace::Number(layout.extra_at.unwrap_or(default.tss_extra)),
            ),
        };
        (self.gs_tss.clone().unwrap_or(tss), self.gs_tss_extra.clone().unwrap_or(extra))
    }

    fn block(
        &self,
        foreign: &Foreign,
        layout: &Layout,
        extra_size: u64,
    ) -> Result<BlockOffsets, Failure> {
        let resolve = |place: &DataPlace, option| {
            let place = place.resolve(&foreign.data);
            place.map_err(|error| Failure::Usage(format!("`{option}`: {error}")))
        };
        let (tss, extra) = self.places(layout);
        let block = BlockOffsets {
            tss: resolve(&tss, "--gs-tss")?,
            tss_extra: resolve(&extra, "--gs-tss-extra")?,
        };
        let BlockOffsets { tss, tss_extra } = block;
        let tss_size = size_of::<Tss>() as u64;
        let distance = tss_extra.wrapping_sub(tss).cast_unsigned();
        if distance < tss_size || distance.wrapping_neg() < extra_size {
            return Err(Failure::Usage(format!(
                "the TSS ({tss_size:#x} bytes at GS{}) and the switcher's data ({extra_size:#x} \
                 bytes at GS{}) overlap: set `--gs-tss` and `--gs-tss-extra` to where the code \
                 has them",
                signed(tss),
                signed(tss_extra),
            )));
        }
        Ok(block)
    }
}

fn signed(offset: i64) -> String {
    format!("{}{:#x}", if offset < 0 { '-' } else { '+' }, offset.unsigned_abs())
}

/// How something is when the kernel boots.
fn choice(text: &str) -> Result<(Choice, bool), String> {
    let wrong = || String::from("write a choice, `=`, and on or off, such as smap=off");
    let (choice, way) = text.rsplit_once('=').ok_or_else(wrong)?;
    let is_on = match way {
        "on" => true,
        "off" => false,
        _ => return Err(wrong()),
    };
    Ok((choice.parse()?, is_on))
}

/// Room on a stack.
fn room(text: &str) -> Result<Room, String> {
    let bytes = number(text).ok_or("not a number of bytes such as 4096 or 0x1000")?;
    Room::new(bytes).map_err(|error| error.to_string())
}

/// A range of a window, as an argument.
#[derive(Clone, Debug)]
pub(crate) struct WindowArg {
    window: Window,
    start: DataPlace,
    /// Where it ends; of one instruction, nowhere.
    end: Option<DataPlace>,
}

impl FromStr for WindowArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            String::from(
                "write unsafe-stack or guest-root, `=`, and a range, such as \
                 unsafe-stack=entry_SYSCALL_64_switcher..entry_SYSCALL_64_switcher_safe_stack",
            )
        };
        let (kind, range) = text.split_once('=').ok_or_else(wrong)?;
        let window = match kind {
            "unsafe-stack" => Window::UnsafeStack,
            "guest-root" => Window::GuestRoot,
            _ => return Err(wrong()),
        };
        let (start, end) = match range.split_once("..") {
            Some((start, end)) => (start, Some(end.parse()?)),
            None => (range, None),
        };
        Ok(Self { window, start: start.parse()?, end })
    }
}

/// A symbol of ours, and what it is called.
fn renamed(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((ours, theirs)) if !ours.is_empty() && !theirs.is_empty() => {
            Ok((ours.to_owned(), theirs.to_owned()))
        }
        _ => Err("write a symbol of ours and theirs, such as \
                  entry_IRETQ_switcher=native_irq_return_iret"
            .into()),
    }
}
