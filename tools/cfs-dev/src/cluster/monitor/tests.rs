//! What Prometheus reads is what it understands.

use std::process::Command;

use super::*;

/// Runs `promtool`, and gives what it says and whether it is content; nothing if it is not installed.
fn promtool(test: &str, arguments: &[&str], directory: &Path) -> Option<(String, bool)> {
    if !programs::is_in_path("promtool") {
        eprintln!("SKIPPED {test}: it needs promtool (apt-get install prometheus)");
        return None;
    }
    let output = Command::new("promtool").args(arguments).current_dir(directory).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((String::from_utf8(said).unwrap(), output.status.success()))
}

#[test]
fn the_configuration_is_understood_by_prometheus() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in FILES {
        write(&directory.path().join(name), text).unwrap();
    }
    let (targets, labels) = (["127.0.0.1:9090".to_owned()], Labels { node: "n1".into() });
    let targets = serde_json::to_string(&[Target { targets, labels }]).unwrap();
    write(&directory.path().join("targets.json"), &targets).unwrap();
    // A name that is a number, or a word of YAML, stays a name.
    for cluster in ["dev", "1", "no"] {
        write(&directory.path().join("prometheus.yml"), &config(cluster)).unwrap();
        let test = "the_configuration_is_understood_by_prometheus";
        let check = ["check", "config", "prometheus.yml"];
        let Some((said, content)) = promtool(test, &check, directory.path()) else { return };
        assert!(content && said.contains("rules.yml"), "{said}");
        assert!(!said.contains("FAILED") && !said.contains("WARNING"), "{said}");
    }
}

#[test]
fn each_alert_comes_when_it_should_and_not_before() {
    let directory = tempfile::tempdir().unwrap();
    let (rules, tests) = (
        include_str!("../../../monitor/rules.yml"),
        include_str!("../../../monitor/rules-test.yml"),
    );
    write(&directory.path().join("rules.yml"), rules).unwrap();
    write(&directory.path().join("rules-test.yml"), tests).unwrap();
    let test = "each_alert_comes_when_it_should_and_not_before";
    let check = ["check", "rules", "--lint-fatal", "rules.yml"];
    let Some((said, content)) = promtool(test, &check, directory.path()) else { return };
    assert!(content, "{said}");
    let check = ["test", "rules", "rules-test.yml"];
    let (said, content) = promtool(test, &check, directory.path()).expect("it was there before");
    assert!(content, "{said}");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names {
        assert!(tests.contains(&format!("alertname: {name}\n")), "no test has {name} come");
    }
}

/// What follows a word in a file, up to what cannot be in a name.
fn names_after<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let parts = text.match_indices(word).map(|(at, _)| &text[at..]);
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    parts.map(|part| part.split(|c| !is_part(c)).next().unwrap_or_default()).collect()
}

#[test]
fn pages_and_rules_know_only_metrics_that_nodes_have() {
    // The words of fsd's, which is a program to this crate and no library.
    let metrics = include_str!("../../../../../fsd/src/metrics.rs");
    for (file, text) in FILES {
        for name in names_after(text, "claudefs_") {
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
            let known = |name: &str| metrics.contains(&format!("\"{name}\""));
            assert!(known(name) || base.is_some_and(known), "{file} asks for {name}");
        }
    }
}

#[test]
fn the_page_of_expressions_leads_on_when_it_is_asked_for_nothing() {
    let page =
        leading_on("{{define \"head\"}}\n<link>{{end}}{{define \"content\"}}{{end}}").unwrap();
    assert!(page.starts_with("{{define \"head\"}}\n<script>") && page.contains("<link>{{end}}"));
    assert_eq!(leading_on("<html>"), None);
}
