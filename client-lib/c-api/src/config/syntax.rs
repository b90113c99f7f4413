//! Both syntaxes of configuration files: TOML, and the one of ime.conf.
//!
//! No complete ime.conf is public. What is known: sections with keys, `key: value;` on a line, the
//! value without quotes up to the semicolon, `#` before a comment. The reader takes that, with `=`
//! as well as `:`, with or without a colon before the brace, with or without quotes.

use std::collections::BTreeMap;

use super::definitions::DEFINITIONS;

/// Values of settings by their names.
pub type FileValues = BTreeMap<&'static str, String>;

/// Reads a file in either syntax.
///
/// # Errors
/// Sentences, without the file's name.
pub fn parse(text: &str) -> Result<FileValues, String> {
    match text.parse::<toml::Table>() {
        Ok(table) => from_toml(&table),
        Err(_) if looks_like_ime(text) => parse_ime(text),
        Err(error) => Err(error.to_string().trim_end().to_owned()),
    }
}

/// A line of the other syntax ends a value with a semicolon, or opens or closes a section.
fn looks_like_ime(text: &str) -> bool {
    let is = |line: &str| line.contains(';') || line.ends_with(['{', '}']);
    text.lines().map(without_comment).any(is)
}

fn without_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or("").trim()
}

fn from_toml(table: &toml::Table) -> Result<FileValues, String> {
    let mut values = FileValues::new();
    if let Some(client) = table.get("client") {
        let client = client.as_table().ok_or("'client' is not a table")?;
        for (key, value) in client {
            let known = DEFINITIONS.iter().find(|d| d.name == key && d.name != "config_file");
            let definition = known.ok_or_else(|| format!("[client] has no key '{key}'"))?;
            values.insert(definition.name, text_of(value));
        }
    }
    // On a server's own machine its file is enough: it says where the cluster is.
    if !values.contains_key("servers") {
        let servers: Vec<String> = [("node", "listen"), ("cluster", "join")]
            .iter()
            .filter_map(|(section, key)| Some(text_of(table.get(*section)?.get(key)?)))
            .collect();
        if !servers.is_empty() {
            values.insert("servers", servers.join(","));
        }
    }
    Ok(values)
}

/// Numbers, flags and lists as the environment would have them.
fn text_of(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Boolean(flag) => i32::from(*flag).to_string(),
        toml::Value::Array(list) => list.iter().map(text_of).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn parse_ime(text: &str) -> Result<FileValues, String> {
    let mut values = FileValues::new();
    let mut sections: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut rest = without_comment(line);
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('}') {
                let known = sections.pop();
                known.ok_or_else(|| format!("line {}: '}}' without '{{'", number + 1))?;
                rest = after.trim_start_matches(';').trim_start();
                continue;
            }
            let end = rest.find([';', '{', '}']).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            if let Some(after) = after.strip_prefix('{') {
                sections.push(name_of(part));
                rest = after.trim_start();
                continue;
            }
            if let Some((key, value)) = key_and_value(part) {
                take(&sections, &key, value, &mut values);
            } else if !part.trim().is_empty() {
                return Err(format!("line {}: '{}' is not KEY: VALUE;", number + 1, part.trim()));
            }
            rest = after.trim_start_matches(';').trim_start();
        }
    }
    match sections.last() {
        None => Ok(values),
        Some(section) => Err(format!("section '{section}' has no end")),
    }
}

fn name_of(part: &str) -> String {
    part.trim().trim_end_matches([':', '=']).trim().trim_matches('"').to_ascii_lowercase()
}

fn key_and_value(part: &str) -> Option<(String, &str)> {
    let (key, value) = part.split_once([':', '='])?;
    let key = name_of(key);
    let clean = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if key.is_empty() || !key.chars().all(clean) {
        return None;
    }
    Some((key, value.trim().trim_matches('"')))
}

/// Keys that are not ours are the servers'.
fn take(sections: &[String], key: &str, value: &str, values: &mut FileValues) {
    let section = sections.join(".");
    let full = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    for definition in DEFINITIONS.iter().filter(|d| d.name != "config_file") {
        let ours = section == "client" && definition.name == key;
        if ours || definition.keys.iter().any(|name| *name == full) {
            let list = value.trim_matches(['(', ')', '[', ']']);
            values.insert(definition.name, list.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IME: &str = "
# comment; with { braces }
def_pgeom: 8+2;          # another
network_stack = OFI;
ime_bfs {
    mount_point: /fsmnt/bfs;
}
client: {
    servers: 10.0.0.1:7400, 10.0.0.2:7400;
    command_timeout = \"60\";
};
server { device { path: /dev/nvme0n1; } threads: 4; }
";

    #[test]
    fn the_old_syntax_is_read() {
        let values = parse(IME).expect("good");
        assert_eq!(values["mount_point"], "/fsmnt/bfs");
        assert_eq!(values["pgeom"], "8+2");
        assert_eq!(values["network_stack"], "OFI");
        assert_eq!(values["servers"], "10.0.0.1:7400, 10.0.0.2:7400");
        assert_eq!(values["command_timeout"], "60");
        assert_eq!(values.len(), 5, "{values:?}");
    }

    #[test]
    fn toml_is_read_and_a_server_s_own_file_says_where_it_is() {
        let values =
            parse("[client]\nservers = [\"a:1\", \"b:2\"]\nwr_buffers = 64\ndisable_ra = true\n")
                .expect("good");
        assert_eq!(values["servers"], "a:1,b:2");
        assert_eq!((&*values["wr_buffers"], &*values["disable_ra"]), ("64", "1"));
        let values =
            parse("[node]\nlisten = \"a:1\"\n[cluster]\njoin = [\"b:2\"]\n").expect("good");
        assert_eq!(values["servers"], "a:1,b:2");
        assert!(parse("[client]\nserver = \"a:1\"\n").expect_err("typo").contains("'server'"));
    }

    #[test]
    fn what_is_neither_is_an_error_with_its_place() {
        assert!(parse("ime_bfs {\n mount_point: /a;\n").expect_err("open").contains("ime_bfs"));
        assert!(parse("a: b;\n} \n").expect_err("closed").contains("line 2"));
        assert!(parse("nonsense;\n").expect_err("nothing").contains("line 1"));
        assert!(parse("[client\n").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_it_panic(text in "[a-z{};:=#\"\n /]{0,200}") {
            let _ = parse(&text);
        }
    }
}
