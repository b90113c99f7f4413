//! Settings: from calls of the program, the environment, a file, and defaults, in this order.

mod definitions;
mod file;
mod settings;
mod syntax;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use definitions::{DEFINITIONS, Definition};

pub use definitions::Effect;
pub use settings::{LogSettings, Settings};

/// Where a value is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `bb_set`: a tool's command line.
    Call,
    /// This variable.
    Environment(&'static str),
    /// This file.
    File(String),
    /// Nobody said anything.
    Default,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// As it was written.
    pub text: String,
    /// Who wrote it.
    pub origin: Origin,
}

/// All of them, by name.
pub type Values = BTreeMap<&'static str, Value>;

/// What the program has set by calls. Under a lock that is held for a moment only.
static CALLS: Mutex<BTreeMap<&'static str, String>> = Mutex::new(BTreeMap::new());

fn definition(name: &str) -> Option<&'static Definition> {
    DEFINITIONS.iter().find(|d| d.name == name || d.variables.contains(&name))
}

/// Sets a value by its name or that of its environment variable, before everything else. None takes
/// it back.
///
/// # Errors
/// A sentence about what is wrong with it.
pub fn set(name: &str, value: Option<&str>) -> Result<(), String> {
    let definition = definition(name).ok_or_else(|| format!("there is no setting '{name}'"))?;
    let mut calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    match value {
        Some(value) => {
            (definition.check)(value).map_err(|why| format!("{name}: '{value}' {why}"))?;
            calls.insert(definition.name, value.to_owned());
        }
        None => {
            calls.remove(definition.name);
        }
    }
    Ok(())
}

/// Everything that is said now, and what is wrong with it.
pub fn gather(variable: impl Fn(&str) -> Option<String>) -> (Values, Vec<String>) {
    let calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut errors = Vec::new();
    let chosen = calls.get("config_file").cloned().or_else(|| variable("IM_CLIENT_CFG_FILE"));
    let (file_values, path) = match file::read(chosen.as_deref()) {
        Ok(read) => read,
        Err(error) => {
            errors.push(error);
            Default::default()
        }
    };
    let mut values = Values::new();
    for definition in DEFINITIONS {
        let said = |name: &&'static str| Some((*name, variable(name)?));
        let (text, origin) = if let Some(text) = calls.get(definition.name) {
            (text.clone(), Origin::Call)
        } else if let Some((name, text)) = definition.variables.iter().find_map(said) {
            (text, Origin::Environment(name))
        } else if let Some(text) = file_values.get(definition.name) {
            (text.clone(), Origin::File(path.clone()))
        } else {
            (definition.default.to_owned(), Origin::Default)
        };
        if origin != Origin::Default
            && let Err(why) = (definition.check)(&text)
        {
            let whose = match &origin {
                Origin::Environment(name) => (*name).to_owned(),
                Origin::File(path) => format!("{path}: {}", definition.name),
                _ => definition.name.to_owned(),
            };
            errors.push(format!("{whose}: '{text}' {why}"));
        }
        values.insert(definition.name, Value { text, origin });
    }
    (values, errors)
}

/// A line for each setting: `name = value (from whom; what it does)`.
pub fn show(values: &Values) -> String {
    let mut out = String::new();
    for definition in DEFINITIONS {
        let Some(value) = values.get(definition.name) else { continue };
        let origin = match &value.origin {
            Origin::Call => "set by the program".to_owned(),
            Origin::Environment(name) => format!("environment {name}"),
            Origin::File(path) => format!("file {path}"),
            Origin::Default => "default".to_owned(),
        };
        let effect = match definition.effect {
            Effect::Works => "",
            Effect::NotYet => "; not yet in use",
            Effect::None => "; nothing here depends on it",
        };
        let _ = writeln!(out, "{} = {} ({origin}{effect})", definition.name, value.text);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(environment: &[(&str, &str)]) -> (Values, Vec<String>) {
        gather(|name| {
            environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn file(text: &str) -> String {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("bb-capi-{}-{number}.conf", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    }

    #[test]
    fn every_setting_is_taken_from_the_program_then_the_environment_then_the_file() {
        for definition in DEFINITIONS.iter().filter(|d| d.name != "config_file") {
            let (from_file, from_environment, from_call) = definition.examples;
            let path = file(&format!("[client]\n{} = \"{from_file}\"\n", definition.name));
            let ime = file(&format!("client {{\n  {}: {from_file};\n}}\n", definition.name));
            for path in [&path, &ime] {
                let mut environment = vec![("IM_CLIENT_CFG_FILE", path.as_str())];
                let (values, errors) = gathered(&environment);
                assert_eq!(errors, Vec::<String>::new(), "{}", definition.name);
                let value = &values[definition.name];
                assert_eq!(value.text, from_file, "{}", definition.name);
                assert_eq!(value.origin, Origin::File(path.clone()));
                for variable in definition.variables {
                    environment.truncate(1);
                    environment.push((variable, from_environment));
                    let (values, errors) = gathered(&environment);
                    assert_eq!(errors, Vec::<String>::new(), "{variable}");
                    assert_eq!(values[definition.name].text, from_environment, "{variable}");
                }
                set(definition.name, Some(from_call)).expect("a good value");
                let (values, _) = gathered(&environment);
                assert_eq!(values[definition.name].text, from_call);
                assert_eq!(values[definition.name].origin, Origin::Call);
                set(definition.name, None).expect("taken back");
            }
            for path in [path, ime] {
                std::fs::remove_file(path).expect("removed");
            }
        }
    }

    #[test]
    fn defaults_are_good_values() {
        let (values, errors) = gathered(&[]);
        assert!(errors.is_empty(), "{errors:?}");
        Settings::from_values(&values).expect("good");
        for definition in DEFINITIONS.iter().filter(|d| !d.default.is_empty()) {
            (definition.check)(definition.default).expect(definition.name);
        }
    }

    #[test]
    fn a_bad_value_is_named_with_its_variable_or_file() {
        let path = file("[client]\ncommand_timeout = \"soon\"\n");
        let (_, errors) = gathered(&[("IM_CLIENT_CFG_FILE", &path), ("IM_CLIENT_PGEOM", "17+9")]);
        std::fs::remove_file(&path).expect("removed");
        let all = errors.join("\n");
        assert!(all.contains("IM_CLIENT_PGEOM: '17+9'"), "{all}");
        assert!(all.contains(&format!("{path}: command_timeout: 'soon'")), "{all}");
        assert!(set("pgeom", Some("x")).is_err() && set("no_such", Some("1")).is_err());
    }

    #[test]
    fn a_file_that_was_named_and_is_not_there_is_an_error() {
        let (_, errors) = gathered(&[("IM_CLIENT_CFG_FILE", "/nonexistent/ime.conf")]);
        assert!(errors[0].contains("/nonexistent/ime.conf"), "{errors:?}");
    }
}
