//! Man pages and completions, from the same definitions as the commands.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;

/// Prints the man page: the program's, then a section for each of its commands.
pub fn man<C: CommandFactory>() -> ExitCode {
    written(render(&C::command(), &mut io::stdout().lock()))
}

/// Prints completions for `shell`.
pub fn completions<C: CommandFactory>(shell: clap_complete::Shell, name: &str) -> ExitCode {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut C::command(), name, &mut out);
    written(io::stdout().lock().write_all(&out))
}

fn render(command: &clap::Command, out: &mut dyn Write) -> io::Result<()> {
    clap_mangen::Man::new(command.clone()).render(out)?;
    sections(command, command.get_name(), out)
}

/// A section for each command below, and for those below it.
fn sections(command: &clap::Command, path: &str, out: &mut dyn Write) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("{path} {}", sub.get_name());
        writeln!(out, ".SH \"{}\"", name.to_uppercase())?;
        let man = clap_mangen::Man::new(sub.clone().bin_name(&name));
        man.render_synopsis_section(out)?;
        man.render_description_section(out)?;
        man.render_options_section(out)?;
        sections(sub, &name, out)?;
    }
    Ok(())
}

fn written(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write: {error}");
            ExitCode::from(crate::FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Bbadm;

    #[test]
    fn commands_of_commands_have_their_sections_too() {
        let mut page = Vec::new();
        render(&Bbadm::command(), &mut page).expect("written");
        let page = String::from_utf8(page).expect("UTF-8");
        for section in ["BBADM CLUSTER", "BBADM CLUSTER STATUS", "BBADM CLUSTER JOIN"] {
            assert!(page.contains(&format!(".SH \"{section}\"")), "{section}");
        }
        assert!(page.contains("Exit status: 0"), "{page}");
    }
}
