//! A bootable ISO with GRUB and the kernel, which starts without asking a question.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hw_protocol::Options;

use crate::tools::{self, Ending};

/// How long `grub-mkrescue` may take, which needs less than a second.
const LIMIT: Duration = Duration::from_secs(60);

/// An entry of GRUB's menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MenuEntry {
    /// The text of the entry in the menu, without quotes.
    pub title: &'static str,
    /// The options of the kernel.
    pub options: Options,
}

/// The configuration of GRUB: the first entry starts after `timeout` seconds.
///
/// COM1 is a console besides the screen, because the kernel reports there: a machine whose report
/// is read over a serial line can be controlled over it as well.
#[must_use]
pub fn grub_config(entries: &[MenuEntry], timeout: u32) -> String {
    let mut text = format!("set timeout={timeout}\nset default=0\n");
    if timeout > 0 {
        text += "serial --unit=0 --speed=115200\n\
                 terminal_input console serial\n\
                 terminal_output console serial\n";
    }
    for entry in entries {
        text += &format!(
            "menuentry '{}' {{\n    multiboot /boot/hw-kernel {}\n    module /boot/vectors\n    boot\n}}\n",
            entry.title, entry.options
        );
    }
    text
}

/// Writes a bootable ISO with these entries, each of which loads `vectors` as well.
///
/// # Errors
/// If a tool is missing or fails, or if a file cannot be read or written.
pub fn write(
    kernel: &Path,
    vectors: &[u8],
    entries: &[MenuEntry],
    timeout: u32,
    iso: &Path,
) -> Result<()> {
    tools::require(tools::ISO)?;
    let directory = tempfile::tempdir().context("a temporary directory")?;
    let grub = directory.path().join("boot/grub");
    fs::create_dir_all(&grub).with_context(|| format!("creating {}", grub.display()))?;
    fs::write(grub.join("grub.cfg"), grub_config(entries, timeout)).context("writing grub.cfg")?;
    fs::copy(kernel, directory.path().join("boot/hw-kernel"))
        .with_context(|| format!("copying {}", kernel.display()))?;
    fs::write(directory.path().join("boot/vectors"), vectors).context("writing the vectors")?;

    let log = tempfile::NamedTempFile::new().context("a temporary file")?;
    let mut command = tools::command(tools::GRUB_MKRESCUE.what);
    command.arg("--output").arg(iso).arg(directory.path());
    let output = File::create(log.path()).context("a temporary file")?;
    let (ending, _) = tools::run(&mut command, output, LIMIT).context("running grub-mkrescue")?;
    match ending {
        Ending::Exited(status) if status.success() => Ok(()),
        _ => bail!(
            "grub-mkrescue: {ending}\n{}",
            fs::read_to_string(log.path()).unwrap_or_default().trim_end()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_gen::arch::PagingMode;

    #[test]
    fn each_entry_passes_its_options_to_the_kernel() {
        let entry =
            |title, paging| MenuEntry { title, options: Options { paging, ..Options::default() } };
        let config = grub_config(
            &[entry("four", PagingMode::FourLevel), entry("five", PagingMode::FiveLevel)],
            0,
        );
        assert_eq!(
            config,
            "set timeout=0\nset default=0\n\
             menuentry 'four' {\n    multiboot /boot/hw-kernel paging=4level suite=all\n    module /boot/vectors\n    boot\n}\n\
             menuentry 'five' {\n    multiboot /boot/hw-kernel paging=la57 suite=all\n    module /boot/vectors\n    boot\n}\n"
        );
    }
}
