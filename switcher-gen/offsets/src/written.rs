//! What somebody has written by hand, as TOML or JSON, and how to tell texts apart.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use crate::check::checked;
use crate::{Field, Found, OffsetsError, Source, Struct};

/// What kind of text it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Header,
    Toml,
    Json,
    Unknown,
}

/// What kind of text this is, by the first line that says something. In TOML, a comment begins as a
/// directive in C does, and with a space after it.
pub(crate) fn kind(text: &str) -> Kind {
    const DIRECTIVES: [&str; 5] = ["#define", "#if", "#pragma", "#include", "#undef"];
    for line in text.lines().map(str::trim) {
        let is_directive = DIRECTIVES.iter().any(|it| line.starts_with(it));
        if line.starts_with('{') {
            return Kind::Json;
        } else if is_directive || line.starts_with("/*") || line.starts_with("//") {
            return Kind::Header;
        } else if line.starts_with('[') || line.contains('=') && !line.starts_with('#') {
            return Kind::Toml;
        } else if !line.is_empty() && !line.starts_with('#') {
            return Kind::Unknown;
        }
    }
    Kind::Unknown
}

/// What TOML says.
pub(crate) fn toml(text: &str) -> Result<Found, OffsetsError> {
    let file = toml::from_str::<Written>(text);
    file.map_err(|error| OffsetsError::Toml(error.to_string().trim_end().into()))?
        .found(Source::Toml)
}

/// What JSON says.
pub(crate) fn json(text: &str) -> Result<Found, OffsetsError> {
    let file = serde_json::from_str::<Written>(text);
    file.map_err(|error| OffsetsError::Json(error.to_string()))?.found(Source::Json)
}

/// A table of which the keys are known.
trait Table: Default {
    const KEYS: &'static [&'static str];
    /// What it is, for errors.
    const WHAT: &'static str;

    /// Takes the value of a key.
    fn take<'de, A: MapAccess<'de>>(&mut self, key: usize, map: &mut A) -> Result<(), A::Error>;
}

/// A key, as its number in `Table::KEYS`.
struct Key<T>(std::marker::PhantomData<T>);

impl<'de, T: Table> DeserializeSeed<'de> for Key<T> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<usize, D::Error> {
        // The error is made here, where both formats know the line of the key.
        let key = String::deserialize(from)?;
        T::KEYS.iter().position(|it| *it == key).ok_or_else(|| {
            let score = |it: &&&str| (strsim::jaro_winkler(&key, it) * 1000.0) as u32;
            let nearest = T::KEYS.iter().max_by_key(score).filter(|it| score(it) > 700);
            let nearest = nearest.map_or(String::new(), |it| format!(", do you mean `{it}`?"));
            let known: Vec<_> = T::KEYS.iter().map(|it| format!("`{it}`")).collect();
            let known = known.join(", ");
            let what = T::WHAT;
            D::Error::custom(format!("{what} has no key `{key}`{nearest} (there are {known})"))
        })
    }
}

struct TableVisitor<T>(std::marker::PhantomData<T>);

impl<'de, T: Table> Visitor<'de> for TableVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, as a table", T::WHAT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut table = T::default();
        let mut seen = vec![false; T::KEYS.len()];
        while let Some(key) = map.next_key_seed(Key::<T>(std::marker::PhantomData))? {
            if std::mem::replace(&mut seen[key], true) {
                let (what, key) = (T::WHAT, T::KEYS[key]);
                return Err(A::Error::custom(format!("{what} has `{key}` twice")));
            }
            table.take(key, &mut map)?;
        }
        Ok(table)
    }
}

macro_rules! deserialize_as_table {
    ($($table:ty),*) => {$(
        impl<'de> Deserialize<'de> for $table {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_map(TableVisitor::<Self>(std::marker::PhantomData))
            }
        }
    )*};
}

deserialize_as_table!(Written, WrittenStruct<true>, WrittenStruct<false>);

/// A whole text.
#[derive(Default)]
struct Written {
    tss: Option<WrittenStruct<true>>,
    tss_extra: Option<WrittenStruct<true>>,
    pvcs: Option<WrittenStruct<false>>,
}

impl Table for Written {
    const KEYS: &'static [&'static str] = &["tss", "tss_extra", "pvcs"];
    const WHAT: &'static str = "the file";

    fn take<'de, A: MapAccess<'de>>(&mut self, key: usize, map: &mut A) -> Result<(), A::Error> {
        match key {
            0 => self.tss = Some(map.next_value()?),
            1 => self.tss_extra = Some(map.next_value()?),
            _ => self.pvcs = Some(map.next_value()?),
        }
        Ok(())
    }
}

/// A struct, which lies in the block or does not.
#[derive(Default)]
struct WrittenStruct<const IN_BLOCK: bool> {
    size: Option<u64>,
    at: Option<u64>,
    fields: Vec<Field>,
}

impl<const IN_BLOCK: bool> Table for WrittenStruct<IN_BLOCK> {
    const KEYS: &'static [&'static str] = match IN_BLOCK {
        true => &["fields", "size", "at"],
        false => &["fields", "size"],
    };
    const WHAT: &'static str = "a struct";

    fn take<'de, A: MapAccess<'de>>(&mut self, key: usize, map: &mut A) -> Result<(), A::Error> {
        match key {
            0 => self.fields = map.next_value::<Fields>()?.0,
            1 => self.size = Some(map.next_value()?),
            _ => self.at = Some(map.next_value()?),
        }
        Ok(())
    }
}

/// The fields of a struct, by their names.
struct Fields(Vec<Field>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fields of a struct, as a table of names and offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields: std::collections::BTreeMap<String, Place> = Default::default();
        while let Some(FieldName(name)) = map.next_key()? {
            let place = map.next_value()?;
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format!("field `{name}` is there twice")));
            }
            fields.insert(name, place);
        }
        let field = |(name, Place { at, size })| Field { name, at, size };
        Ok(Fields(fields.into_iter().map(field).collect()))
    }
}

/// A name of a field, as C writes them, with those around it.
struct FieldName(String);

impl<'de> Deserialize<'de> for FieldName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || "_.[]".contains(letter);
        let begins = name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
        match begins && name.chars().all(is_of_name) {
            true => Ok(Self(name)),
            false => Err(D::Error::custom(format!("`{name}` is no name of a field"))),
        }
    }
}

/// Where a field lies, and how large it is.
#[derive(Default)]
struct Place {
    at: u64,
    size: Option<u64>,
}

/// The same, with a place that may be missing while it is read.
#[derive(Default)]
struct PlaceTable {
    at: Option<u64>,
    size: Option<u64>,
}

impl Table for PlaceTable {
    const KEYS: &'static [&'static str] = &["at", "size"];
    const WHAT: &'static str = "a field";

    fn take<'de, A: MapAccess<'de>>(&mut self, key: usize, map: &mut A) -> Result<(), A::Error> {
        match key {
            0 => self.at = Some(map.next_value()?),
            _ => self.size = Some(map.next_value()?),
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PlaceVisitor)
    }
}

struct PlaceVisitor;

impl<'de> Visitor<'de> for PlaceVisitor {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an offset in bytes, or a table of `at` and `size`")
    }

    fn visit_u64<E: Error>(self, at: u64) -> Result<Place, E> {
        Ok(Place { at, size: None })
    }

    fn visit_i64<E: Error>(self, at: i64) -> Result<Place, E> {
        let at = u64::try_from(at);
        at.map(|at| Place { at, size: None }).map_err(|_| E::custom("an offset is negative"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Place, A::Error> {
        let table = TableVisitor::<PlaceTable>(std::marker::PhantomData).visit_map(map)?;
        let at = table.at.ok_or_else(|| A::Error::custom("a field has no `at`"))?;
        Ok(Place { at, size: table.size })
    }
}

impl Written {
    fn found(self, source: Source) -> Result<Found, OffsetsError> {
        let mut found = Found::nothing(source);
        if let Some(tss) = self.tss {
            found.tss_at = tss.at;
            found.tss = Some(tss.layout("tss")?);
        }
        if let Some(extra) = self.tss_extra {
            found.tss_extra_at = extra.at;
            found.tss_extra = Some(extra.layout("tss_extra")?);
        }
        if let Some(pvcs) = self.pvcs {
            found.pvcs = Some(pvcs.layout("pvcs")?);
        }
        match found.is_empty() {
            false => Ok(found),
            true => Err(OffsetsError::NotFound {
                looked_for: "the tables tss, tss_extra and pvcs".into(),
                similar: ", nor anything else".into(),
            }),
        }
    }
}

impl<const IN_BLOCK: bool> WrittenStruct<IN_BLOCK> {
    fn layout(self, name: &str) -> Result<Struct, OffsetsError> {
        if let Some(size) = self.at.filter(|at| *at >= crate::MOST_BYTES) {
            return Err(OffsetsError::TooLarge { name: format!("the block around {name}"), size });
        }
        checked(name, Struct { size: self.size, fields: self.fields, bit_fields: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_told_apart_by_what_they_say_first() {
        for (text, expected) in [
            ("\n # define what?\n[pvcs]\n", Kind::Toml),
            ("pvcs.fields.rip = 1", Kind::Toml),
            ("  {\"pvcs\": 1}", Kind::Json),
            ("#ifndef A\n", Kind::Header),
            ("/* a = b */\n", Kind::Header),
            ("#define PVCS_rip 96\n", Kind::Header),
            ("hello\n", Kind::Unknown),
            ("# only a comment", Kind::Unknown),
            ("", Kind::Unknown),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }
}
