use super::*;
use raftmeta_types::ShardId;
use raftmeta_types::cluster::Protection;

/// So many percent of each node.
fn flash(percents: &[u64]) -> Vec<Flash> {
    let of = |(number, percent): (u64, &u64)| Flash {
        node: format!("n{number}"),
        used_bytes: *percent,
        total_bytes: 100,
    };
    (1..).zip(percents).map(of).collect()
}

/// One of two copies is wanted to go on, and the shards have so many.
fn copies(of_each: &[u32]) -> Redundancy {
    let lacking = |(id, copies): (u16, &u32)| {
        let away = vec!["n2".to_owned()];
        (*copies < 2).then_some(Lacking { shard: ShardId(id), copies: *copies, away })
    };
    Redundancy {
        protection: Protection { replicas: 2, in_sync_min: 1 },
        shards: of_each.len(),
        lacking: (0..).zip(of_each).filter_map(lacking).collect(),
    }
}

fn well() -> Facts {
    Facts {
        redundancy: copies(&[2, 2]),
        nodes_down: vec![],
        nodes_without_datagrams: vec![],
        clocks_off: vec![],
        rotation: None,
        blockd_down: vec![],
        devices: vec![],
        metadata_down: None,
        log_failed: None,
        flash: flash(&[10]),
        damaged_chunks: 0,
    }
}

#[test]
fn all_well_is_ok_without_a_word_more() {
    assert_eq!(judge(&well()), Health { word: Level::Ok, checks: vec![] });
}

#[test]
fn each_fault_is_named_at_its_level() {
    let down = Some("ended".to_owned());
    let device = |has_failed| Facts {
        devices: vec![(
            "n2".into(),
            Device { path: "0000:01:00.0".into(), why: "gone".into(), has_failed },
        )],
        ..well()
    };
    let cases = [
        (device(false), "DEVICE_DEGRADED", Level::Warn),
        (device(true), "DEVICE_FAILED", Level::Err),
        (Facts { nodes_down: vec!["n2".into()], ..well() }, "NODE_DOWN", Level::Warn),
        (Facts { nodes_without_datagrams: vec!["n2".into()], ..well() }, "DATAGRAMS", Level::Warn),
        (Facts { clocks_off: vec![("n2".into(), -7000)], ..well() }, "CLOCK_SKEW", Level::Warn),
        (Facts { clocks_off: vec![("n2".into(), 400_000)], ..well() }, "CLOCK_SKEW", Level::Err),
        (Facts { rotation: Some(RotationStage::Issuing), ..well() }, "CA_ROTATION", Level::Ok),
        (Facts { redundancy: copies(&[2, 1]), ..well() }, "REDUNDANCY", Level::Warn),
        (Facts { redundancy: copies(&[0, 2]), ..well() }, "REDUNDANCY", Level::Err),
        (
            Facts { blockd_down: vec![("n2".into(), "ended".into())], ..well() },
            "BLOCKD_DOWN",
            Level::Err,
        ),
        (Facts { metadata_down: down.clone(), ..well() }, "METADATA_DOWN", Level::Err),
        (
            Facts { metadata_down: down.clone(), log_failed: down, ..well() },
            "LOG_FAILED",
            Level::Err,
        ),
        (Facts { damaged_chunks: 1, ..well() }, "DAMAGED", Level::Err),
        (Facts { flash: flash(&[10, 80]), ..well() }, "FLASH_NEARFULL", Level::Warn),
        (Facts { flash: flash(&[95, 10]), ..well() }, "FLASH_FULL", Level::Err),
    ];
    for (facts, name, level) in cases {
        let health = judge(&facts);
        assert_eq!(health.word, level, "{facts:?}");
        assert_eq!(health.checks.len(), 1, "{facts:?}");
        assert_eq!((health.checks[0].name.as_str(), health.checks[0].level), (name, level));
    }
}

#[test]
fn the_worst_level_is_the_word() {
    let facts = Facts { redundancy: copies(&[1]), damaged_chunks: 3, ..well() };
    assert_eq!(judge(&facts).word, Level::Err);
    assert_eq!(judge(&facts).checks.len(), 2);
    assert_eq!(judge(&facts).word.to_string(), "HEALTH_ERR");
}

#[test]
fn every_fault_says_what_to_do() {
    let why = Some("it broke".to_owned());
    let facts = Facts {
        redundancy: copies(&[0]),
        blockd_down: vec![("n1".into(), "it broke".into())],
        log_failed: why,
        damaged_chunks: 1,
        flash: flash(&[99]),
        ..well()
    };
    let health = judge(&facts);
    assert_eq!(health.checks.len(), 5);
    for check in health.checks {
        assert!(!check.next.is_empty(), "{}", check.name);
    }
}

#[test]
fn every_node_that_is_nearly_full_is_named() {
    let facts = Facts { flash: flash(&[81, 10, 99, 94, 95]), ..well() };
    let health = judge(&facts);
    let told: Vec<(&str, &str)> =
        health.checks.iter().map(|check| (check.name.as_str(), check.detail.as_str())).collect();
    assert_eq!(
        told,
        [
            ("FLASH_FULL", "flash used: 99 % on n3, 95 % on n5"),
            ("FLASH_NEARFULL", "flash used: 81 % on n1, 94 % on n4"),
        ]
    );
    let unknown = Flash { node: "n1".into(), used_bytes: 0, total_bytes: 0 };
    assert_eq!(judge(&Facts { flash: vec![unknown], ..well() }).word, Level::Ok);
}
