//! What a command prints: one value in five formats.
//!
//! Machine formats are versioned: `{"version":1,"kind":"status",…}`. Bytes are integers, times RFC 3339 in UTC.
//! Columns and texts of the tables may change from version to version; scripts read JSON or names.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// Version of the machine formats; grows when a field goes or changes its meaning.
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For people with wide terminals: more columns
    Wide,
    /// One versioned JSON document
    Json,
    /// The same as YAML
    Yaml,
    /// Only the names or ids, one a line
    Name,
}

/// Something that a command prints.
pub trait Shown: Serialize {
    /// Says in machine formats what it is.
    const KIND: &'static str;
    fn table(&self, wide: bool) -> String;
    fn names(&self) -> Vec<String>;
}

#[derive(Serialize)]
struct Document<'a, T> {
    version: u32,
    kind: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

/// The text of a value, with its last newline. `line`: JSON on one line, for streams of documents.
pub fn render<T: Shown>(format: Format, line: bool, shown: &T) -> Result<String> {
    let document = Document { version: VERSION, kind: T::KIND, body: shown };
    let mut text = match format {
        Format::Table => shown.table(false),
        Format::Wide => shown.table(true),
        Format::Json if line => serde_json::to_string(&document).context("JSON")?,
        Format::Json => serde_json::to_string_pretty(&document).context("JSON")?,
        Format::Yaml => {
            let yaml = serde_yaml_ng::to_string(&document).context("YAML")?;
            if line { format!("---\n{yaml}") } else { yaml }
        }
        Format::Name => shown.names().join("\n"),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Prints a value on stdout.
pub fn print<T: Shown>(format: Format, shown: &T) -> Result<()> {
    write_out(&render(format, false, shown)?)
}

/// Writes to stdout. A reader that went away (`| head`) is no error.
pub fn write_out(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot write to stdout"),
    }
}

/// Columns without lines, as `ls` and `kubectl` have them. `right`: the columns of numbers.
pub fn columns(head: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Whether stdout takes colours: a terminal, and `NO_COLOR` is not set (no-color.org).
pub fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !unwanted && io::stdout().is_terminal()
}

/// `text` in an ANSI colour, where colours are wanted.
pub fn paint(text: &str, colour: u8, colours: bool) -> String {
    if colours { format!("\x1b[1;{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Things {
        items: Vec<u64>,
    }

    impl Shown for Things {
        const KIND: &'static str = "things";

        fn table(&self, wide: bool) -> String {
            let head: &[&str] = if wide { &["ID", "TWICE"] } else { &["ID"] };
            let row = |n: &u64| [n.to_string(), (n * 2).to_string()][..head.len()].to_vec();
            columns(head, &[0], self.items.iter().map(row).collect())
        }

        fn names(&self) -> Vec<String> {
            self.items.iter().map(u64::to_string).collect()
        }
    }

    #[test]
    fn every_format() {
        let things = Things { items: vec![7, 12] };
        let text = |format, line| render(format, line, &things).unwrap();
        assert_eq!(text(Format::Name, false), "7\n12\n");
        assert_eq!(
            text(Format::Json, true),
            "{\"version\":1,\"kind\":\"things\",\"items\":[7,12]}\n"
        );
        assert_eq!(text(Format::Yaml, false), "version: 1\nkind: things\nitems:\n- 7\n- 12\n");
        assert_eq!(text(Format::Table, false), "ID\n 7\n12\n");
        assert_eq!(text(Format::Wide, false), "ID  TWICE\n 7  14\n12  24\n");
    }

    #[test]
    fn nothing_to_name_prints_nothing() {
        assert_eq!(render(Format::Name, false, &Things { items: vec![] }).unwrap(), "");
    }

    #[test]
    fn colours_are_left_out() {
        assert_eq!(paint("x", 31, false), "x");
        assert_eq!(paint("x", 31, true), "\x1b[1;31mx\x1b[0m");
    }
}
