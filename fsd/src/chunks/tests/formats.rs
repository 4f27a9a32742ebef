//! Volumes and segments of a version to come are refused by name, and left as they are.

use super::*;

fn params() -> OpenParams {
    OpenParams { cluster_uuid: CLUSTER, keys: Keys::new(1, &[9; 32]), epochs: vec![] }
}

async fn block(volume: &SimVolume, lba: u64) -> Vec<u8> {
    let mut buffer = blockd_ipc::Volume::buffer(volume, 4096).await.unwrap();
    buffer.set_len(4096);
    blockd_ipc::Volume::read(volume, lba, buffer).await.unwrap().to_vec()
}

/// Gives the header in this block, so many bytes of which count, the next version.
async fn from_the_future(volume: &SimVolume, lba: u64, counted: usize) -> Vec<u8> {
    let mut buffer = blockd_ipc::Volume::buffer(volume, 4096).await.unwrap();
    buffer.set_len(4096);
    buffer.copy_from_slice(&block(volume, lba).await);
    buffer[8] += 1;
    let crc = format::crc32c(&[&buffer[..12], &buffer[16..counted]]).to_le_bytes();
    buffer[12..16].copy_from_slice(&crc);
    blockd_ipc::Volume::write(volume, lba, buffer, true).await.unwrap();
    block(volume, lba).await
}

/// Why it is, and the volume as it is then.
async fn refused(volume: SimVolume) -> (String, SimVolume) {
    let volume = volume.reopen();
    let error = ChunkStore::open(volume.clone(), params()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NewerFormat, "{error}");
    let (text, ours) = (error.to_string(), format::VERSION);
    assert!(text.contains(&format!("format {} is newer than {ours}", ours + 1)), "{text}");
    (text, volume)
}

#[tokio::test]
async fn a_volume_of_a_newer_format_even_in_one_header() {
    for copy in [0, 1] {
        let (volume, store) = fresh(20).await;
        drop(store);
        let written = from_the_future(&volume, copy, 512).await;
        let (why, volume) = refused(volume).await;
        assert!(why.contains("chunk volume"), "{why}");
        assert_eq!(block(&volume, copy).await, written, "nothing was repaired");
    }
}

#[tokio::test]
async fn a_segment_of_a_newer_format() {
    let (volume, store) = fresh(20).await;
    store.put(vec![Dice(1).chunk(3000)]).await.unwrap();
    drop(store);
    let lba = format::SLOTS_START / 4096;
    let written = from_the_future(&volume, lba, 64).await;
    let (why, volume) = refused(volume).await;
    assert!(why.contains("segment in slot 0"), "{why}");
    assert_eq!(block(&volume, lba).await, written, "nothing was repaired");
}
