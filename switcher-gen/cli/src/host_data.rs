//! Data of the host's that somebody's code uses besides the switcher's own, as arguments say it.

use std::collections::BTreeMap;
use std::str::FromStr;

use switcher_prove::elf::Request;
use switcher_prove::{DataAt, HostData, WrongData};

use crate::data_place::DataPlace;
use crate::emit::number;
use crate::output::Failure;

/// Which data of the host's code uses.
#[derive(clap::Args)]
pub(crate) struct HostDataArgs {
    /// A per-CPU variable of the kernel's that the code of `--elf` reads, besides the TSS and the
    /// switcher's data: its place relative to GS base, likewise; its size; what it holds, if that
    /// is known; and `written` if the code writes it, too. Such as x86_spec_ctrl_current:8 or
    /// pcpu_hot+0x10:8,written. May be repeated
    #[arg(
        long,
        value_name = "PLACE:BYTES[=VALUE][,written]",
        value_parser = per_cpu,
        allow_hyphen_values = true,
        requires = "elf"
    )]
    per_cpu: Vec<DataArg>,
    /// Data that nobody changes, which it reads relative to its own address: a symbol or an
    /// address, its size, what it holds, if that is known, and `mapped` if a guest's root maps it.
    /// Such as x86_verw_sel:2=0x18,mapped. May be repeated
    #[arg(
        long,
        value_name = "PLACE:BYTES[=VALUE][,mapped]",
        value_parser = read_only,
        requires = "elf"
    )]
    read_only: Vec<DataArg>,
}

/// One piece of data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DataArg {
    place: DataPlace,
    /// The place as it is written.
    name: String,
    size: u64,
    value: Option<u64>,
    /// Whether it has the word that its kind of data may have.
    is_marked: bool,
}

fn per_cpu(text: &str) -> Result<DataArg, String> {
    DataArg::of(text, "written", "pcpu_hot+0x10:8,written")
}

fn read_only(text: &str) -> Result<DataArg, String> {
    DataArg::of(text, "mapped", "x86_verw_sel:2=0x18,mapped")
}

impl DataArg {
    /// Reads an argument of which `mark` may be the last word.
    fn of(text: &str, mark: &str, example: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "write a place, `:`, a number of bytes, maybe `=` and a number, and maybe `,{mark}`, such as {example}"
            )
        };
        let (rest, is_marked) = match text.split_once(',') {
            Some((rest, word)) if word == mark => (rest, true),
            Some(_) => return Err(wrong()),
            None => (text, false),
        };
        let (name, sizes) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (size, value) = match sizes.split_once('=') {
            Some((size, value)) => (size, Some(number(value).ok_or_else(wrong)?)),
            None => (sizes, None),
        };
        let size = number(size).ok_or_else(wrong)?;
        let place = DataPlace::from_str(name)?;
        Ok(Self { place, name: name.to_owned(), size, value, is_marked })
    }

    /// What it is, where `data` are the addresses of symbols.
    fn resolve(
        &self,
        data: &BTreeMap<String, u64>,
        at: impl Fn(i64) -> DataAt,
        mark: impl Fn(HostData) -> Result<HostData, WrongData>,
        option: &str,
    ) -> Result<HostData, Failure> {
        let Self { place, name, size, value, is_marked } = self;
        let wrong = |error: &dyn std::fmt::Display| Failure::Usage(format!("`{option}`: {error}"));
        let Ok(place) = place.resolve(data) else {
            let symbol = place.symbol().unwrap_or(name);
            return Err(wrong(&format!(
                "the file has no data called `{symbol}`, and its code refers to none"
            )));
        };
        let of_data = |error: WrongData| wrong(&error);
        let mut found = HostData::new(name, at(place), *size).map_err(of_data)?;
        if let Some(value) = value {
            found = found.holding(*value).map_err(of_data)?;
        }
        match is_marked {
            true => mark(found).map_err(of_data),
            false => Ok(found),
        }
    }
}

impl HostDataArgs {
    /// Whether anything is said.
    pub(crate) const fn is_used(&self) -> bool {
        let Self { per_cpu, read_only } = self;
        !per_cpu.is_empty() || !read_only.is_empty()
    }

    /// What is asked of the file for it.
    pub(crate) fn ask(&self, request: Request) -> Request {
        let symbols = |all: &[DataArg]| {
            all.iter().filter_map(|data| data.place.symbol().map(str::to_owned)).collect::<Vec<_>>()
        };
        let request =
            symbols(&self.per_cpu).iter().fold(request, |all, symbol| all.with_data(symbol));
        symbols(&self.read_only).iter().fold(request, |all, symbol| all.with_fixed_data(symbol))
    }

    /// All of it, where `data` are the addresses of symbols.
    pub(crate) fn resolve(&self, data: &BTreeMap<String, u64>) -> Result<Vec<HostData>, Failure> {
        let per_cpu = self
            .per_cpu
            .iter()
            .map(|of| of.resolve(data, DataAt::PerCpu, HostData::written, "--per-cpu"));
        let fixed = |at: i64| DataAt::Fixed(at.cast_unsigned());
        let read_only = self
            .read_only
            .iter()
            .map(|of| of.resolve(data, fixed, |data| Ok(data.mapped()), "--read-only"));
        let symbol = |of: &DataArg| of.place.symbol().map(str::to_owned);
        let both = self.per_cpu.iter().find_map(|of| {
            let is_it = |other: &DataArg| symbol(other).is_some() && symbol(other) == symbol(of);
            self.read_only.iter().any(is_it).then(|| symbol(of)).flatten()
        });
        match both {
            Some(symbol) => Err(Failure::Usage(format!(
                "`{symbol}` cannot be both a per-CPU variable and data that every CPU shares: leave \
                 one of `--per-cpu` and `--read-only`"
            ))),
            None => per_cpu.chain(read_only).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_a_place_a_size_and_maybe_a_value() {
        let depth = per_cpu("pcpu_hot+0x10:8,written").unwrap();
        assert_eq!(depth.place, DataPlace::Symbol("pcpu_hot".into(), 0x10));
        assert_eq!((depth.size, depth.value, depth.is_marked), (8, None, true));
        let selector = read_only("x86_verw_sel:2=0x18,mapped").unwrap();
        assert_eq!((selector.size, selector.value, selector.is_marked), (2, Some(0x18), true));
        assert_eq!(per_cpu("-0x40:4").unwrap().place, DataPlace::Number(-0x40));
        for bad in ["", "x", "x:", ":8", "x:8=", "x:8,", "x:8,mapped", "x:8,written,written", "x:y"]
        {
            assert!(per_cpu(bad).is_err(), "{bad}");
        }
        assert!(read_only("x:8,written").is_err());
    }

    #[test]
    fn data_that_is_not_there_is_an_error() {
        let args = HostDataArgs { per_cpu: vec![per_cpu("x+1:8").unwrap()], read_only: Vec::new() };
        let Err(Failure::Usage(why)) = args.resolve(&BTreeMap::new()) else { panic!("no error") };
        assert!(why.contains("--per-cpu") && why.contains("`x`"), "{why}");
        let data = BTreeMap::from([("x".to_owned(), 0x100)]);
        let found = args.resolve(&data).ok().unwrap();
        assert!(found[0].to_string().contains("`x+1`, 8 bytes at GS+0x101"), "{}", found[0]);
    }
}
