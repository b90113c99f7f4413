//! `./x man`: man pages and completions, as the programs themselves print them.

use std::path::Path;

use crate::Outcome;
use crate::cargo::{cargo, command, output, run as start, target_directory};

const PROGRAMS: [&str; 3] = ["bbctl", "bbadm", "bbd"];
const SHELLS: [(&str, &str); 3] = [("bash", ""), ("zsh", "_"), ("fish", "")];

/// Writes target/man and target/completions.
pub fn run() -> Outcome {
    start(cargo().args([
        "build",
        "--locked",
        "--package=bb-server",
        "--package=bb-cli",
        "--bins",
    ]))?;
    let target = target_directory()?;
    let (man, completions) = (target.join("man"), target.join("completions"));
    for directory in [&man, &completions] {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    for program in PROGRAMS {
        let path = target.join("debug").join(program);
        let print = |words: &[&str]| output(command(&path.to_string_lossy()).args(words));
        let section = if program == "bbctl" { 1 } else { 8 };
        write(&man.join(format!("{program}.{section}")), &print(&["man"])?)?;
        for (shell, prefix) in SHELLS {
            let extension = if prefix.is_empty() { format!(".{shell}") } else { String::new() };
            let name = format!("{prefix}{program}{extension}");
            write(&completions.join(name), &print(&["completions", shell])?)?;
        }
    }
    println!("man pages are in {}, completions in {}", man.display(), completions.display());
    Ok(())
}

fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
