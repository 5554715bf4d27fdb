//! A kernel of Debian's, unpacked and not installed: a file of the kind that people point `switcher
//! prove --elf` at, with no switcher in it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::debian;
use crate::tools::{self, Ending, Tool};
use crate::workspace;

/// The smallest of Debian's kernels; it depends on the package that has the image.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// How long a step may take: the package has to be fetched.
const LIMIT: Duration = Duration::from_secs(300);

/// What unpacks the package and the kernel, by how the kernel is compressed: the first bytes, and
/// the program that unpacks it.
pub const TOOLS: &[Tool] = &[
    Tool { what: "dpkg-deb", packages: &["dpkg"] },
    Tool { what: "lz4", packages: &["lz4"] },
    Tool { what: "xz", packages: &["xz-utils"] },
    Tool { what: "zstd", packages: &["zstd"] },
];
const COMPRESSED: [(&[u8], &str); 3] = [
    (&[0x02, 0x21, 0x4C, 0x18], "lz4"),
    (&[0xFD, b'7', b'z', b'X', b'Z', 0], "xz"),
    (&[0x28, 0xB5, 0x2F, 0xFD], "zstd"),
];

/// Where the kernel is.
#[must_use]
pub fn path() -> PathBuf {
    workspace::target().join("debian-kernel/vmlinux")
}

/// Fetches the kernel, unless it is there.
///
/// # Errors
/// What could not be done, in words.
pub fn make() -> Result<PathBuf, String> {
    let path = path();
    if path.exists() {
        return Ok(path);
    }
    tools::require(TOOLS).map_err(|why| why.to_string())?;
    let text = |why: io::Error| why.to_string();
    let target = workspace::target();
    fs::create_dir_all(&target).map_err(text)?;
    // It is made beside its final place, so that a part of it is never taken for all.
    let new = tempfile::Builder::new().prefix("debian-kernel").tempdir_in(&target);
    let new = new.map_err(text)?;
    let depends = || output(tools::command("apt-cache").args(["depends", PACKAGE]));
    let depends = match depends() {
        Ok(known) => known,
        // A fresh container has no lists of packages.
        Err(_) => {
            output(tools::command("apt-get").arg("update"))?;
            depends()?
        }
    };
    let image = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let image = image.ok_or_else(|| format!("{PACKAGE} depends on no image: {depends}"))?;
    let package = format!("linux-image-{image}");
    output(tools::command("apt-get").args(["download", &package]).current_dir(new.path()))?;
    let archive = found(new.path(), |name| name.ends_with(".deb"))?;
    output(tools::command("dpkg-deb").arg("-x").arg(archive).arg(new.path()))?;
    let boot = found(&new.path().join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let image = fs::read(boot).map_err(text)?;
    let payload = payload(&image).ok_or("the kernel's header says nothing of what it holds")?;
    let known = COMPRESSED.iter().find(|(magic, _)| payload.starts_with(magic));
    let (_, program) = known.ok_or("the kernel is compressed in a way that is not known")?;
    let compressed = new.path().join("payload");
    fs::write(&compressed, payload).map_err(text)?;
    let vmlinux = new.path().join("vmlinux");
    let mut unpack = tools::command(program);
    // What follows, the size of the whole, is not part of it: some programs warn of that.
    unpack.arg("-dc").stdin(File::open(compressed).map_err(text)?);
    unpack.stdout(File::create(&vmlinux).map_err(text)?);
    let _ = unpack.status().map_err(text)?;
    let is_elf = fs::read(&vmlinux).is_ok_and(|bytes| bytes.starts_with(b"\x7FELF"));
    if !is_elf {
        return Err(format!("{program} has made no ELF file of it"));
    }
    let directory = path.parent().expect("it is in a directory");
    fs::create_dir_all(directory).map_err(text)?;
    fs::rename(vmlinux, &path).map_err(text)?;
    Ok(path)
}

/// What the boot protocol of x86 says of the compressed kernel: behind the sectors of the setup, so
/// many bytes at an offset (Linux, Documentation/arch/x86/boot.rst, `payload_offset`).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let sectors = match image.get(0x1F1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    let length = word(0x24C)?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

fn found(directory: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf, String> {
    let entries = fs::read_dir(directory).map_err(|why| why.to_string())?;
    let mut names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let name = |path: &PathBuf| path.file_name().is_some_and(|name| is_it(&name.to_string_lossy()));
    names.find(name).ok_or_else(|| format!("{} has no such file", directory.display()))
}

fn output(command: &mut Command) -> Result<String, String> {
    match debian::output(command, LIMIT)? {
        (Ending::Exited(status), said) if status.success() => Ok(said),
        (ending, said) => {
            let program = command.get_program().display();
            Err(format!("{program}: {ending}: {}", debian::last_lines(&said)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 0x1000];
        image[0x1F1] = 1;
        image[0x248] = 0x10;
        image[0x24C] = 12;
        image[2 * 512 + 0x10..][..8].copy_from_slice(b"12345678");
        assert_eq!(payload(&image), Some(&b"12345678"[..]));
        image[0x24C] = 3;
        assert_eq!(payload(&image), None);
        image[0x24F] = 0xFF;
        assert_eq!(payload(&image), None);
        assert_eq!(payload(&image[..0x100]), None);
    }
}
