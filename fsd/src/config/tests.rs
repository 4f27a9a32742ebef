use super::*;

const LEAST: &str = r#"
[node]
name = "n1"
data_dir = "data"
[door]
unix = "run/fsd.sock"
[blockd]
socket = "/run/blockd.sock"
"#;

fn load(text: &str) -> Result<Config, String> {
    let directory = tempfile::Builder::new().prefix("c").tempdir_in("/tmp").unwrap();
    let path = directory.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).map_err(|e| e.to_string())
}

#[test]
fn the_least_file_gets_the_documented_defaults() {
    let config = load(LEAST).unwrap();
    assert_eq!(config.cluster, Cluster::default());
    assert_eq!(config.cluster.shard_count, 256);
    assert_eq!(config.metrics.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.chunks.avg, Size(65536));
    assert_eq!(config.door.tcp, None);
}

#[test]
fn relative_paths_are_taken_from_the_file() {
    let config = load(LEAST).unwrap();
    assert!(config.node.data_dir.is_absolute() && config.node.data_dir.ends_with("data"));
    assert!(config.door.unix.is_absolute());
    assert_eq!(config.blockd.socket, Path::new("/run/blockd.sock"));
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let cases = [
        ("[node]", "[node]\ncolour = 1", "colour"),
        ("[node]", "[nodes]", "nodes"),
        ("\"n1\"", "\"\"", "node.name"),
        ("\"n1\"", "\"../n1\"", "node.name"),
        ("[door]", "[cluster]\nshard_count = 12\n[door]", "cluster.shard_count"),
        ("[door]", "[cluster]\nshard_count = 0\n[door]", "cluster.shard_count"),
        ("[door]", "[cluster]\nshard_count = 131072\n[door]", "cluster.shard_count"),
        ("[door]", "[cluster]\nprotection = \"replica:0\"\n[door]", "replica:0"),
        ("[door]", "[cluster]\nprotection = \"ec:4+2\"\n[door]", "ec:4+2"),
        ("[door]", "[cluster]\nin_sync_min = 0\n[door]", "cluster.in_sync_min"),
        ("[door]", "[cluster]\nin_sync_min = 2\n[door]", "cluster.in_sync_min"),
        ("[door]", "[cluster]\nprotection = \"replica:3\"\nin_sync_min = 4\n[door]", "from 1 to 3"),
        ("[door]", "[door]\nadvertise = \"h:1\"", "door.advertise"),
        ("[door]", "[door]\ntcp = \"nowhere\"", "tcp"),
        ("[door]", "[chunks]\nmin = \"64K\"\n[door]", "chunks.avg"),
        ("[door]", "[chunks]\nmax = \"64K\"\n[door]", "chunks.max"),
        ("[door]", "[chunks]\nmax = 70000\n[door]", "chunks.max"),
        ("[door]", "[chunks]\nmax = \"64 sheep\"\n[door]", "64 sheep"),
        ("/run/blockd.sock", "run/fsd.sock", "blockd.socket"),
        ("[blockd]", "[blockd]\npool = { path = \"p\", size = \"1M\" }", "blockd.pool.size"),
        (
            "[blockd]",
            "[blockd]\nconfig = \"b\"\npool = { path = \"p\", size = \"1G\" }",
            "blockd.pool",
        ),
        ("data_dir = \"data\"", "", "data_dir"),
    ];
    for (from, to, named) in cases {
        let error = load(&LEAST.replacen(from, to, 1)).expect_err(to);
        assert!(error.contains(named), "`{to}` gave: {error}");
        assert!(error.contains("c.toml"), "does not name the file: {error}");
    }
}

#[test]
fn a_socket_path_too_long_for_the_kernel_is_refused() {
    let long = format!("/{}", "s".repeat(SOCKET_PATH_BYTES_MAX));
    let error = load(&LEAST.replace("run/fsd.sock", &long)).unwrap_err();
    assert!(error.contains("door.unix"), "{error}");
}

#[test]
fn sizes() {
    let cases = [
        ("0", Some(0)),
        ("512", Some(512)),
        ("64KiB", Some(64 << 10)),
        ("100M", Some(100 << 20)),
        ("4 GiB", Some(4 << 30)),
        ("2T", Some(2 << 40)),
        ("", None),
        ("G", None),
        ("-1", None),
        ("1.5G", None),
        ("1KB", None),
        ("99999999999999999999", None),
        ("99999999T", None),
    ];
    for (text, bytes) in cases {
        assert_eq!(text.parse::<Size>().ok(), bytes.map(Size), "{text}");
    }
}

#[test]
fn the_shipped_development_file_is_accepted() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/dev.toml");
    let config = Config::load(&path).unwrap();
    assert_eq!(config.node.name, "dev");
    assert_eq!(config.cluster.shard_count, 16);
}

#[test]
fn half_of_the_copies_go_on_unless_it_is_said() {
    for (text, expected) in [
        ("protection = 'replica:2'", (2, 1)),
        ("protection = 'replica:3'", (3, 2)),
        ("protection = 'replica:3'\nin_sync_min = 1", (3, 1)),
        ("in_sync_min = 3\nprotection = 'replica:3'", (3, 3)),
        ("name = 'c'", (1, 1)),
    ] {
        let config = load(&LEAST.replace("[door]", &format!("[cluster]\n{text}\n[door]"))).unwrap();
        let protection = config.cluster.protected();
        assert_eq!((protection.replicas, protection.in_sync_min), expected, "{text}");
    }
}
