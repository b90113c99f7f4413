//! `./x install --prefix P`: what a machine needs, at the places where makefiles and scripts made for
//! IME look: `P/include`, `P/lib`, `P/bin`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::cargo::{cargo, command, output, root, run as start, target_directory};

/// Arguments of `./x install`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where to, for example /usr/local or /opt/ddn/ime
    #[arg(long, value_name = "DIRECTORY")]
    prefix: PathBuf,
    /// Write below this directory instead of "/", as packages are made
    #[arg(long, value_name = "DIRECTORY")]
    destdir: Option<PathBuf>,
    /// The client library alone: no programs
    #[arg(long)]
    library_only: bool,
    /// What tests have built, without optimisation
    #[arg(long)]
    debug: bool,
}

/// The library's file; the other names lead to it. It is the name that linked programs remember.
const LIBRARY: &str = "libbb_client.so.1";
const LIBRARY_NAMES: [&str; 2] = ["libbb_client.so", "libim_client.so"];
const HEADERS: [&str; 4] = ["ime_native.h", "im_client_native2.h", "bb_ime_types.h", "bb_client.h"];
const PROGRAMS: [&str; 3] = ["bbd", "bbctl", "bbadm"];
/// Where shells look for completions, below share.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/NAME"),
    ("zsh", "zsh/site-functions/_NAME"),
    ("fish", "fish/vendor_completions.d/NAME.fish"),
];
const MAN: &str = "ime-native-api.3";

/// Builds and installs.
pub fn run(arguments: &Arguments) -> Outcome {
    if !arguments.prefix.is_absolute() {
        return Err(format!("--prefix {}: give an absolute path", arguments.prefix.display()));
    }
    let (library, programs) = build(arguments)?;
    let prefix = match &arguments.destdir {
        Some(directory) => {
            directory.join(arguments.prefix.strip_prefix("/").unwrap_or(Path::new("")))
        }
        None => arguments.prefix.clone(),
    };
    let here = root().join("client-lib/c-api");
    copy(&library, &prefix.join("lib").join(LIBRARY), 0o755)?;
    for name in LIBRARY_NAMES {
        link(LIBRARY, &prefix.join("lib").join(name))?;
    }
    for name in HEADERS {
        copy(&here.join("include").join(name), &prefix.join("include").join(name), 0o644)?;
    }
    for name in ["burstbay.pc", "im_client.pc"] {
        fill(
            &here.join("install/burstbay.pc.in"),
            &prefix.join("lib/pkgconfig").join(name),
            arguments,
        )?;
    }
    let cmake = prefix.join("lib/cmake/Burstbay");
    for name in ["BurstbayConfig.cmake", "BurstbayConfigVersion.cmake"] {
        fill(&here.join("install").join(format!("{name}.in")), &cmake.join(name), arguments)?;
    }
    let man = prefix.join("share/man");
    copy(&here.join("install").join(MAN), &man.join("man3").join(MAN), 0o644)?;
    for path in &programs {
        let name = path.file_name().unwrap_or_default();
        copy(path, &prefix.join("bin").join(name), 0o755)?;
        let section = if name == "bbctl" { 1 } else { 8 };
        let page = output(command(&path.to_string_lossy()).arg("man"))?;
        let file = format!("man{section}/{}.{section}", name.to_string_lossy());
        write(&man.join(file), page.as_bytes(), 0o644)?;
        for (shell, place) in COMPLETIONS {
            let text = output(command(&path.to_string_lossy()).args(["completions", shell]))?;
            let file = place.replace("NAME", &name.to_string_lossy());
            write(&prefix.join("share").join(file), text.as_bytes(), 0o644)?;
        }
    }
    println!("installed in {}", prefix.display());
    println!(
        "to compile: cc -I {0}/include -L {0}/lib ... -lim_client",
        arguments.prefix.display()
    );
    Ok(())
}

/// The library unwinds, so that a panic becomes an error of the call: a profile of its own. The
/// programs are built as ever, and abort.
fn build(arguments: &Arguments) -> Result<(PathBuf, Vec<PathBuf>), String> {
    let target = target_directory()?;
    let (library, programs) = if arguments.debug { ("dev", "dev") } else { ("library", "release") };
    let folder = |profile: &str| match profile {
        "dev" => target.join("debug"),
        profile => target.join(profile),
    };
    start(cargo().args(["build", "--locked", "--package=bb-capi", "--profile", library]))?;
    let mut paths = Vec::new();
    if !arguments.library_only {
        let packages = ["--package=bb-server", "--package=bb-cli", "--bins"];
        start(cargo().args(["build", "--locked", "--profile", programs]).args(packages))?;
        paths.extend(PROGRAMS.map(|name| folder(programs).join(name)));
    }
    Ok((folder(library).join("libbb_capi.so"), paths))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

/// Replaces the file: one that programs have loaded must not change under them.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Outcome {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let new = path.with_extension("new");
    fs::write(&new, bytes).map_err(failed(&new))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(failed(&new))?;
    fs::rename(&new, path).map_err(failed(path))
}

fn copy(from: &Path, to: &Path, mode: u32) -> Outcome {
    write(to, &fs::read(from).map_err(failed(from))?, mode)
}

fn link(target: &str, path: &Path) -> Outcome {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(path)(error));
        }
        _ => {}
    }
    symlink(target, path).map_err(failed(path))
}

fn fill(template: &Path, to: &Path, arguments: &Arguments) -> Outcome {
    let text = fs::read_to_string(template).map_err(failed(template))?;
    let prefix = arguments.prefix.display().to_string();
    let filled = text.replace("@PREFIX@", &prefix).replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    write(to, filled.as_bytes(), 0o644)
}
