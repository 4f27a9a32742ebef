//! DH-HMAC-CHAP (NVMe base 2.0 §8.13.5): the host proves that it knows its secret, and if it asks, the controller proves the
//! same. With a Diffie-Hellman group, which is taken where the host offers one, who only listens cannot try secrets.
//!
//! ```text
//! host       AUTH_Negotiate ─►             ─► DH-HMAC-CHAP_Reply ─►            (─► Success2)
//! controller                ◄─ Challenge ◄─                      ◄─ Success1 ◄─
//! ```
//! Every queue of the controller does it for itself, and may do nothing else before.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::capsule::Sqe;
use super::connection::{Connection, Outcome, Reply};
use super::dh::{Exchange, Group};
use super::pdu::{u16_at, u32_at};
use super::secret::Hash;
use super::status::Status;

/// Security protocol of DH-HMAC-CHAP, with its specific bytes.
const PROTOCOL: [u8; 3] = [1, 1, 0xe9];
const COMMON_MESSAGE: u8 = 0;
const CHAP_MESSAGE: u8 = 1;
const NEGOTIATE: u8 = 0;
const CHALLENGE: u8 = 1;
const REPLY: u8 = 2;
const SUCCESS1: u8 = 3;
const SUCCESS2: u8 = 4;
const FAILURE2: u8 = 0xf0;
const FAILURE1: u8 = 0xf1;
/// The protocol descriptor that stands for DH-HMAC-CHAP.
const DH_HMAC_CHAP: u8 = 1;
const NULL_GROUP: u8 = 0;
/// A message of the host is no longer than this.
const MESSAGE_BYTES_MAX: usize = 2048;

/// Reasons of a failure message.
const AUTHENTICATION_FAILED: u8 = 1;
const NOT_USABLE: u8 = 2;
const CONCATENATION: u8 = 3;
const HASH_UNUSABLE: u8 = 4;
const GROUP_UNUSABLE: u8 = 5;
const INCORRECT_PAYLOAD: u8 = 6;
const INCORRECT_MESSAGE: u8 = 7;

/// How far a queue's authentication is, in order.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// The host's name is enough.
    NotNeeded,
    /// A host without need of it may not begin either.
    Expected,
    /// The challenge is to be fetched, or was.
    Challenged(Box<Challenge>),
    /// The answer was right; what the host fetches next is the message.
    Answered(Vec<u8>),
    /// The host fetched it, and may say that it believes us.
    Passed,
    /// It failed; the message says so when fetched, and the connection is of no use.
    Failed(Vec<u8>),
}

/// What the controller asks.
#[derive(Clone, Debug)]
pub struct Challenge {
    transaction: u16,
    hash: Hash,
    sequence: u32,
    value: Zeroizing<Vec<u8>>,
    /// None with the null group.
    exchange: Option<Exchange>,
}

fn check_protocol(sqe: &Sqe) -> Result<usize, Status> {
    // SPSP0, SPSP1, SECP at 41 to 43, the length behind them.
    if sqe.0[41..44] != PROTOCOL {
        return Err(Status::INVALID_FIELD);
    }
    Ok(u32_at(&sqe.0, 44) as usize)
}

/// A message of the host.
pub fn send(connection: &mut Connection, sqe: &Sqe, data: &[u8]) -> Outcome {
    let len = check_protocol(sqe)?;
    if len != data.len() || !(8..=MESSAGE_BYTES_MAX).contains(&len) {
        return Err(Status::INVALID_FIELD);
    }
    let transaction = u16_at(data, 4);
    let state = std::mem::replace(&mut connection.authentication, Authentication::Expected);
    let next = match (state, data[0], data[1]) {
        (Authentication::NotNeeded, ..) => {
            connection.authentication = Authentication::NotNeeded;
            return Err(Status::SEQUENCE);
        }
        // A host may begin again at any time before it has passed.
        (Authentication::Expected, COMMON_MESSAGE, NEGOTIATE) => negotiate(transaction, data),
        (Authentication::Challenged(challenge), CHAP_MESSAGE, REPLY) => {
            answer(connection, &challenge, transaction, data)
        }
        (Authentication::Passed, CHAP_MESSAGE, SUCCESS2) => Ok(Authentication::Passed),
        // The host does not believe us; it will close.
        (_, _, FAILURE2) => {
            connection.authenticated = false;
            Ok(Authentication::Failed(Vec::new()))
        }
        (Authentication::Passed, COMMON_MESSAGE, NEGOTIATE) => negotiate(transaction, data),
        _ => Err(INCORRECT_MESSAGE),
    };
    connection.authentication = next.unwrap_or_else(|reason| {
        connection.authenticated = false;
        let host = connection.controller.as_ref().map_or("", |c| &c.host_nqn);
        tracing::warn!(host, reason, "a host failed to authenticate");
        Authentication::Failed(failure(transaction, reason))
    });
    Ok(Reply::Done(0))
}

/// The host fetches the controller's message.
pub fn receive(connection: &mut Connection, slot: usize, sqe: &Sqe) -> Outcome {
    let allocated = check_protocol(sqe)?;
    let len = connection.command(slot).len;
    if allocated != len {
        return Err(Status::INVALID_FIELD);
    }
    let state = std::mem::replace(&mut connection.authentication, Authentication::Expected);
    let (mut message, next) = match state {
        Authentication::Challenged(challenge) => {
            (challenge.message(), Authentication::Challenged(challenge))
        }
        Authentication::Answered(message) => {
            connection.link.establish();
            connection.authenticated = true;
            (message, Authentication::Passed)
        }
        Authentication::Failed(message) if !message.is_empty() => {
            (message, Authentication::Failed(Vec::new()))
        }
        other => {
            connection.authentication = other;
            return Err(Status::SEQUENCE);
        }
    };
    if message.len() > len {
        return Err(Status::INVALID_FIELD);
    }
    message.resize(len, 0);
    connection.authentication = next;
    Ok(Reply::Data(message))
}

fn failure(transaction: u16, reason: u8) -> Vec<u8> {
    let [low, high] = transaction.to_le_bytes();
    vec![CHAP_MESSAGE, FAILURE1, 0, 0, low, high, AUTHENTICATION_FAILED, reason]
}

/// Picks the strongest hash that the host offers and a group, and asks.
fn negotiate(transaction: u16, data: &[u8]) -> Result<Authentication, u8> {
    if data[6] != 0 {
        // Secure channel concatenation: TLS is not offered.
        return Err(CONCATENATION);
    }
    let descriptors = data[8..].chunks_exact(64).take(usize::from(data[7]));
    let descriptor = descriptors.into_iter().find(|d| d[0] == DH_HMAC_CHAP).ok_or(NOT_USABLE)?;
    let (hashes, groups) = (usize::from(descriptor[2]), usize::from(descriptor[3]));
    if hashes > 30 || groups > 30 {
        return Err(INCORRECT_PAYLOAD);
    }
    let offered = descriptor[4..4 + hashes].iter().filter_map(|id| Hash::of_id(*id));
    let hash = offered.max_by_key(|h| h.bytes()).ok_or(HASH_UNUSABLE)?;
    let groups = &descriptor[34..34 + groups];
    let group = groups.iter().filter_map(|id| Group::of_id(*id)).min_by_key(|g| g.rank());
    let exchange = match group {
        Some(group) => Some(Exchange::new(group).ok_or(AUTHENTICATION_FAILED)?),
        None if groups.contains(&NULL_GROUP) => None,
        None => return Err(GROUP_UNUSABLE),
    };
    let mut random = Zeroizing::new(vec![0; hash.bytes() + 4]);
    SystemRandom::new().fill(&mut random).map_err(|_| AUTHENTICATION_FAILED)?;
    // Zero is no sequence number.
    let sequence = u32_at(&random, hash.bytes()) | 1;
    random.truncate(hash.bytes());
    let challenge = Challenge { transaction, hash, sequence, value: random, exchange };
    Ok(Authentication::Challenged(Box::new(challenge)))
}

impl Challenge {
    fn message(&self) -> Vec<u8> {
        let mut b = vec![0; 16];
        b[0] = CHAP_MESSAGE;
        b[1] = CHALLENGE;
        b[4..6].copy_from_slice(&self.transaction.to_le_bytes());
        b[6] = self.hash.bytes() as u8;
        b[8] = self.hash.id();
        b[9] = self.exchange.as_ref().map_or(NULL_GROUP, |e| e.group.id());
        let public = self.exchange.as_ref().map_or(&[][..], |e| &e.public);
        b[10..12].copy_from_slice(&(public.len() as u16).to_le_bytes());
        b[12..16].copy_from_slice(&self.sequence.to_le_bytes());
        b.extend_from_slice(&self.value);
        b.extend_from_slice(public);
        b
    }

    /// A challenge as it is answered, theirs or ours: mixed with what both sides share, if they share something.
    fn augmented(&self, challenge: &[u8], shared: Option<&[u8]>) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match shared {
            None => challenge.to_vec(),
            Some(shared) => self.hash.mac(&self.hash.digest(shared), &[challenge]),
        })
    }

    /// What is shared after the host has told its public value; an error if that is none of the group.
    fn shared(&self, theirs: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, u8> {
        match &self.exchange {
            None if theirs.is_empty() => Ok(None),
            None => Err(INCORRECT_PAYLOAD),
            Some(exchange) => exchange.shared(theirs).map(Some).ok_or(INCORRECT_PAYLOAD),
        }
    }

    /// What somebody who knows the key answers. `host` is whether it is the host that does.
    pub fn response(
        &self,
        key: &[u8],
        challenge: &[u8],
        sequence: u32,
        host: Option<(&str, &str)>,
        controller: Option<(&str, &str)>,
    ) -> Vec<u8> {
        let (role, first, second): (&[u8], _, _) = match (host, controller) {
            (Some((host, subsystem)), _) => (b"HostHost", host, subsystem),
            (None, Some((subsystem, host))) => (b"Controller", subsystem, host),
            (None, None) => unreachable!("one of both answers"),
        };
        let parts: [&[u8]; 8] = [
            challenge,
            &sequence.to_le_bytes(),
            &self.transaction.to_le_bytes(),
            // No secure channel concatenation.
            &[0],
            role,
            first.as_bytes(),
            &[0],
            second.as_bytes(),
        ];
        self.hash.mac(key, &parts)
    }
}

/// Checks the host's answer, and answers its challenge if there is one.
fn answer(
    connection: &Connection,
    challenge: &Challenge,
    transaction: u16,
    data: &[u8],
) -> Result<Authentication, u8> {
    let size = challenge.hash.bytes();
    if data.len() < 16 + size
        || transaction != challenge.transaction
        || usize::from(data[6]) != size
    {
        return Err(INCORRECT_PAYLOAD);
    }
    // The response, room for a challenge, the public value.
    let public = match usize::from(u16_at(data, 10)) {
        0 => &[][..],
        len => data.get(16 + 2 * size..16 + 2 * size + len).ok_or(INCORRECT_PAYLOAD)?,
    };
    let shared = challenge.shared(public)?;
    let shared = shared.as_deref().map(Vec::as_slice);
    let controller = connection.controller.as_ref().ok_or(INCORRECT_MESSAGE)?;
    let credentials = controller.credentials.as_ref().ok_or(INCORRECT_MESSAGE)?;
    let subsystem = controller.subsystem.as_ref().map_or("", |s| s.nqn.as_str());
    let host = controller.host_nqn.as_str();
    let key = credentials.host.transformed(host);
    let names = Some((host, subsystem));
    let asked = challenge.augmented(&challenge.value, shared);
    let expected = challenge.response(&key, &asked, challenge.sequence, names, None);
    let given = &data[16..16 + size];
    if aws_lc_rs::constant_time::verify_slices_are_equal(given, &expected).is_err() {
        return Err(AUTHENTICATION_FAILED);
    }
    let mut message = vec![0; 16];
    message[0] = CHAP_MESSAGE;
    message[1] = SUCCESS1;
    message[4..6].copy_from_slice(&transaction.to_le_bytes());
    message[6] = size as u8;
    if data[8] & 1 != 0 {
        let theirs = data.get(16 + size..16 + 2 * size).ok_or(INCORRECT_PAYLOAD)?;
        if theirs == &challenge.value[..] {
            // Our own challenge sent back: the answer would be an oracle.
            return Err(AUTHENTICATION_FAILED);
        }
        let secret = credentials.controller.as_ref().ok_or(AUTHENTICATION_FAILED)?;
        let key = secret.transformed(subsystem);
        let names = Some((subsystem, host));
        let asked = challenge.augmented(theirs, shared);
        let ours = challenge.response(&key, &asked, u32_at(data, 12), None, names);
        message[8] = 1;
        message.extend_from_slice(&ours);
    }
    Ok(Authentication::Answered(message))
}
