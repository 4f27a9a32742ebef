use super::*;

fn filled(len: usize, byte: u8) -> Buffer {
    let mut buffer = Buffer::private(len);
    buffer.fill(byte);
    buffer
}

async fn byte_of(volume: &SimVolume, lba: u64) -> Vec<u8> {
    let buffer = volume.buffer(1).await.unwrap();
    volume.read(lba, buffer).await.unwrap().to_vec()
}

#[tokio::test]
async fn flushed_and_fua_writes_survive_every_cut() {
    for seed in 0..200 {
        let volume = SimVolume::new(4096, 16);
        volume.write(0, filled(4096, 1), false).await.unwrap();
        volume.flush().await.unwrap();
        volume.write(1, filled(4096, 2), false).await.unwrap();
        volume.write(1, filled(4096, 3), true).await.unwrap();
        let after = volume.power_cut(seed);
        assert_eq!(byte_of(&after, 0).await, vec![1; 4096], "seed {seed}");
        assert_eq!(byte_of(&after, 1).await, vec![3; 4096], "seed {seed}");
        let gone = volume.flush().await.unwrap_err();
        assert_eq!(gone.kind(), Kind::Disconnected);
    }
}

#[tokio::test]
async fn unflushed_writes_are_kept_lost_torn_and_reordered() {
    let (mut kept, mut lost, mut torn, mut older) = (0, 0, 0, 0);
    for seed in 0..500 {
        let volume = SimVolume::new(4096, 16);
        volume.write(0, filled(4096, 1), false).await.unwrap();
        volume.write(0, filled(4096, 2), false).await.unwrap();
        let bytes = byte_of(&volume.power_cut(seed), 0).await;
        assert!(bytes.chunks(512).all(|sector| sector.iter().all(|&b| b == sector[0])));
        match (bytes[0], bytes.iter().all(|&b| b == bytes[0])) {
            (_, false) => torn += 1,
            (0, true) => lost += 1,
            (1, true) => older += 1,
            (_, true) => kept += 1,
        }
        let again = byte_of(&volume.power_cut(seed), 0).await;
        assert_eq!(bytes, again, "seed {seed} is not deterministic");
    }
    assert!(kept > 0 && lost > 0 && torn > 0 && older > 0, "{kept} {lost} {torn} {older}");
}

#[tokio::test]
async fn a_failed_flush_poisons_until_reopened() {
    let volume = SimVolume::new(512, 16);
    volume.write(3, filled(512, 7), false).await.unwrap();
    volume.fail_flush();
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Io);
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Poisoned);
    let read = volume.read(3, Buffer::private(512)).await;
    assert_eq!(read.unwrap_err().kind(), Kind::Poisoned);
    volume.reopen().flush().await.unwrap();
}

#[tokio::test]
async fn the_chosen_operation_fails_and_only_that() {
    let volume = SimVolume::new(4096, 16);
    volume.fail_op(1);
    volume.write(0, filled(4096, 1), false).await.unwrap();
    let failed = volume.write(2, filled(8192, 2), false).await.unwrap_err();
    assert_eq!(failed.kind(), Kind::Io);
    // Half of a failed write is there.
    assert_eq!(byte_of(&volume, 2).await[0], 2);
    assert_eq!(byte_of(&volume, 3).await[0], 0);
    volume.halt_after(1);
    volume.flush().await.unwrap();
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Disconnected);
    assert_eq!(volume.ops(), 6);
}

#[tokio::test]
async fn ranges_are_checked_and_deallocated_blocks_read_as_zeros() {
    let volume = SimVolume::new(4096, 16);
    let kinds = [
        volume.write(16, filled(4096, 1), false).await.unwrap_err().kind(),
        volume.write(15, filled(8192, 1), false).await.unwrap_err().kind(),
        volume.read(u64::MAX, Buffer::private(4096)).await.unwrap_err().kind(),
        volume.deallocate(1, u64::MAX).await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [Kind::OutOfRange; 4]);
    let odd = volume.write(0, Buffer::private(100), false).await.unwrap_err();
    assert_eq!(odd.kind(), Kind::Invalid);

    volume.write(4, filled(4096, 9), true).await.unwrap();
    assert_eq!(volume.blocks_used(), 1);
    volume.corrupt(4, 17, 0xff);
    assert_eq!(byte_of(&volume, 4).await[17], 9 ^ 0xff);
    volume.deallocate(0, 16).await.unwrap();
    assert_eq!(byte_of(&volume, 4).await, vec![0; 4096]);
    assert_eq!(volume.blocks_used(), 0);
}
