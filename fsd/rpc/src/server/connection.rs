//! The life of one connection: handshake, greeting, requests, end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftmeta_types::Ino;
use rustls::CertificateError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::doors::Accepted;
use super::local::{self, Left};
use super::{
    ALIVE_EVERY, Conn, GREETING_MAX, HANDSHAKE_MAX, HELLO_META_LEN_MAX, Handler, IDLE_MAX, Peer,
    Refusal, SESSION_CONNECTIONS_MAX, STALL_MAX, STRANGERS_MAX, Shared, now_secs, relay,
};
use crate::frame::{self, Frame, FrameError, HEADER_LEN, Kind};
use crate::message::{Event, Failure, Hello, Request, Response, Role, Versions, Welcome};
use crate::nodes::Upstream;
use crate::versions::NoCommonVersion;

pub(super) const READ_BUFFER_BYTES: usize = 16 << 10;
/// How long, and for how many bytes, a connection that was told off may go on talking.
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: u64 = 16 << 20;
/// Set in the number under which the client behind a connection that was passed on is entered.
const PASSED_ON: u64 = 1 << 63;

pub(super) async fn serve<H: Handler>(shared: Arc<Shared<H>>, accepted: Accepted, id: u64) {
    match accepted {
        Accepted::Unix(stream) => {
            let Ok(credentials) = stream.peer_cred() else { return };
            let peer = Peer::Unix {
                uid: credentials.uid(),
                gid: credentials.gid(),
                pid: credentials.pid(),
            };
            talk_locally(&shared, stream, peer, id).await;
        }
        Accepted::Tcp(stream, address) => {
            let Ok(stranger) = shared.strangers.clone().try_acquire_owned() else {
                let why = format!("{STRANGERS_MAX} connections have not greeted yet");
                return shared.handler.refused(&address.ip().to_string(), Refusal::Crowd, &why);
            };
            let Some((stream, peer)) = shake_hands(&shared, stream, address).await else { return };
            let entry = shared.live.enter(id, &peer);
            tokio::select! {
                () = talk(&shared, stream, peer, id, stranger) => {}
                () = entry.ended() => {}
            }
        }
    }
}

/// TLS, and whose certificate it is.
async fn shake_hands<H: Handler>(
    shared: &Shared<H>,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<(TlsStream<TcpStream>, Peer)> {
    // An error means that it is closed already.
    let _ = stream.set_nodelay(true);
    let acceptor = shared.control.tls.lock().clone()?;
    let stream = match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake");
            // Who only connects and leaves is refused nothing.
            if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
                let source = address.ip().to_string();
                shared.handler.refused(&source, of_handshake(inner), &error);
            }
            return None;
        }
        Err(_) => {
            tracing::debug!(%address, "TLS handshake timed out");
            return None;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = match certificate.map(|der| crate::tls::facts(der)) {
        None => Peer::TlsAnonymous { address },
        Some(Some(certificate)) => Peer::Tls { certificate, address },
        Some(None) => {
            let (source, why) = (address.ip().to_string(), "its certificate cannot be read");
            shared.handler.refused(&source, Refusal::Certificate, &why);
            return None;
        }
    };
    Some((stream, peer))
}

/// Why hands were not shaken.
fn of_handshake(error: &rustls::Error) -> Refusal {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Refusal::Dates,
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => Refusal::Authority,
        rustls::Error::InvalidCertificate(_) => Refusal::Certificate,
        _ => Refusal::Handshake,
    }
}

/// `stranger` is given back once the peer has greeted.
async fn talk<H: Handler>(
    shared: &Arc<Shared<H>>,
    stream: TlsStream<TcpStream>,
    peer: Peer,
    id: u64,
    stranger: OwnedSemaphorePermit,
) {
    let mut stranger = Some(stranger);
    let mut stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
    let sent_away = shared.sent_away();
    let ended = match greet_in_time(shared, &mut stream, &peer, id, &mut stranger).await {
        Some(Greeted::Here(ended)) => ended,
        Some(Greeted::There(upstream)) => {
            drop(stranger);
            return pass_on(&mut stream, *upstream, sent_away).await;
        }
        None => return,
    };
    drop(stranger);
    if matches!(ended.conn.hello.role, Role::Node { .. }) {
        return attend(&ended, &mut stream).await;
    }
    // Of a connection that was passed on, the certificate of who is behind it counts as well.
    let entry = shared.live.enter(PASSED_ON | id, &ended.conn.peer);
    tokio::select! {
        () = attend(&ended, &mut stream) => {}
        () = entry.ended() => {}
        () = sent_away => {}
    }
}

/// Serves requests until the connection ends.
async fn attend<H: Handler, S: AsyncRead + AsyncWrite + Unpin>(
    ended: &Ended<H>,
    stream: &mut BufReader<S>,
) {
    if let Err(error) = requests(ended, stream).await {
        tracing::debug!(peer = ?ended.conn.peer, %error, "connection ended");
        if !matches!(error, FrameError::Io(_)) {
            ended.refused(&error);
            let failure = Failure::Protocol(error.to_string());
            let _ = reply(stream, &Response::Failed(failure), &[]).await;
            linger(stream).await;
        }
    }
}

async fn pass_on<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    upstream: Upstream,
    sent_away: impl Future<Output = ()>,
) {
    tokio::select! {
        passed = relay::pass_on(stream, upstream) => {
            if let Err(error) = passed {
                tracing::debug!(%error, "a connection that was passed on ended");
            }
        }
        () = sent_away => {}
    }
}

async fn talk_locally<H: Handler>(
    shared: &Arc<Shared<H>>,
    stream: UnixStream,
    peer: Peer,
    id: u64,
) {
    let mut stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
    let sent_away = shared.sent_away();
    let ended = match greet_in_time(shared, &mut stream, &peer, id, &mut None).await {
        Some(Greeted::Here(ended)) => Arc::new(*ended),
        Some(Greeted::There(upstream)) => return pass_on(&mut stream, *upstream, sent_away).await,
        None => return,
    };
    let buffered = stream.buffer().to_vec();
    let served = async {
        match local::serve(ended.clone(), stream.into_inner().into_std()?, buffered).await? {
            Left::Over => {}
            Left::Lingering(stream) => linger(&mut from_thread(stream)?).await,
            Left::Subscribed(stream, events) => {
                push(shared, &mut from_thread(stream)?, events).await?;
            }
        }
        Ok::<(), FrameError>(())
    };
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::debug!(peer = ?ended.conn.peer, %error, "connection ended");
            }
        }
        // Its thread ends when this is dropped.
        () = sent_away => {}
    }
}

fn from_thread(stream: std::os::unix::net::UnixStream) -> io::Result<BufReader<UnixStream>> {
    stream.set_nonblocking(true)?;
    Ok(BufReader::new(UnixStream::from_std(stream)?))
}

/// `None`: the connection is over.
async fn greet_in_time<H: Handler, S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared<H>>,
    stream: &mut BufReader<S>,
    peer: &Peer,
    id: u64,
    stranger: &mut Option<OwnedSemaphorePermit>,
) -> Option<Greeted<H>> {
    match timeout(GREETING_MAX, greet(shared, stream, peer, id, stranger)).await {
        Ok(Ok(Some(greeted))) => Some(greeted),
        Ok(Ok(None)) => {
            linger(stream).await;
            None
        }
        Ok(Err(error)) => {
            tracing::debug!(?peer, %error, "greeting");
            if !matches!(error, FrameError::Io(_)) {
                shared.handler.refused(&peer.source(), Refusal::Garbage, &error);
                let failure = Failure::Protocol(error.to_string());
                let _ = reply(stream, &Response::Failed(failure), &[]).await;
                linger(stream).await;
            }
            None
        }
        Err(_) => {
            tracing::debug!(?peer, "no greeting in time");
            None
        }
    }
}

/// Lets the peer read the last reply: what it sent and nobody reads would make the system reset the
/// connection and throw the reply away.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>) {
    let drain = async {
        stream.get_mut().shutdown().await?;
        let rest = &mut stream.take(LINGER_BYTES_MAX);
        tokio::io::copy(rest, &mut tokio::io::sink()).await
    };
    // Whatever happens here, the connection is over.
    let _ = timeout(LINGER_MAX, drain).await;
}

impl<H> Shared<H> {
    /// Ends when everybody is sent away after this call.
    fn sent_away(&self) -> impl Future<Output = ()> + use<H> {
        let mut moves = self.control.moves.subscribe();
        async move {
            // An error means that the server is gone altogether.
            let _ = moves.changed().await;
        }
    }

    /// Counts a connection of the session; false when it has its most.
    fn join(&self, session: raftmeta_types::SessionId) -> bool {
        let mut sessions = self.sessions.lock();
        let count = sessions.entry(session).or_insert(0);
        let fits = *count < SESSION_CONNECTIONS_MAX;
        *count += usize::from(fits);
        fits
    }
}

/// Says that the connection ended, also when its task is dropped in the middle.
pub(super) struct Ended<H: Handler> {
    pub(super) shared: Arc<Shared<H>>,
    pub(super) conn: Conn,
}

impl<H: Handler> Ended<H> {
    /// What came is no request, or does not belong here.
    pub(super) fn refused(&self, why: &dyn std::fmt::Display) {
        self.shared.handler.refused(&self.conn.peer.source(), Refusal::Garbage, why);
    }
}

impl<H: Handler> Drop for Ended<H> {
    fn drop(&mut self) {
        let mut sessions = self.shared.sessions.lock();
        if let Some(count) = sessions.get_mut(&self.conn.session) {
            *count -= 1;
            if *count == 0 {
                sessions.remove(&self.conn.session);
            }
        }
        drop(sessions);
        self.shared.handler.disconnected(&self.conn);
    }
}

/// Who has greeted is served here or by another node.
enum Greeted<H: Handler> {
    Here(Box<Ended<H>>),
    There(Box<Upstream>),
}

pub(super) async fn reply<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    response: &Response,
    data: &[Bytes],
) -> Result<(), FrameError> {
    let written = frame::write_async(stream.get_mut(), Kind::Reply, response, data);
    timeout(STALL_MAX, written).await.unwrap_or(Err(stalled()))
}

fn stalled() -> FrameError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

/// Reads the greeting and answers it. `None`: the connection is over (enrolled or refused).
async fn greet<H: Handler, S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared<H>>,
    stream: &mut BufReader<S>,
    peer: &Peer,
    id: u64,
    stranger: &mut Option<OwnedSemaphorePermit>,
) -> Result<Option<Greeted<H>>, FrameError> {
    let tell_off = |refusal, why: &str| {
        shared.handler.refused(&peer.source(), refusal, &why);
        Failure::Protocol(why.to_owned())
    };
    let who = if relay::node_of(peer).is_some() { "node" } else { "client" };
    let hello = match read_hello(shared.protocols, who, stream).await {
        Ok(Greeting::Hello(hello)) => hello,
        Ok(Greeting::Other) => {
            let failure = tell_off(Refusal::Garbage, "the first request is Hello");
            return refuse(stream, failure).await;
        }
        Ok(Greeting::Foreign(why)) => {
            let failure = tell_off(Refusal::Protocol, &why.to_string());
            return refuse(stream, failure).await;
        }
        Err(error) => return Err(error),
    };
    let (peer, hello, passed_on) = match relay::behind(shared, peer, hello) {
        Ok(behind) => behind,
        Err((refusal, failure)) => {
            shared.handler.refused(&peer.source(), refusal, &failure);
            return refuse(stream, failure).await;
        }
    };
    // Of a connection that was passed on, this is what the client speaks.
    let protocol = match shared.protocols.common(hello.protocols, "client", &hello.build) {
        Ok(protocol) => protocol,
        Err(why) => {
            shared.handler.refused(&peer.source(), Refusal::Protocol, &why);
            return refuse(stream, Failure::Protocol(why.to_string())).await;
        }
    };
    if let Some((refusal, failure)) = refusal(shared, &peer, &hello, passed_on) {
        shared.handler.refused(&peer.source(), refusal, &failure);
        return refuse(stream, failure).await;
    }
    if !matches!(hello.role, Role::Node { .. }) && !shared.handler.serves() {
        if passed_on {
            let failure = Failure::NotReady("this node does not lead any more".into());
            return refuse(stream, failure).await;
        }
        // Who is known by a certificate is no stranger, and may wait for a leader.
        if matches!(peer, Peer::Tls { .. }) {
            stranger.take();
        }
        match shared.handler.route(&peer, &hello).await {
            Ok(upstream) => return Ok(Some(Greeted::There(Box::new(upstream)))),
            // Meanwhile this node has become the one.
            Err(_) if shared.handler.serves() => {}
            Err(failure) => return refuse(stream, failure).await,
        }
    }
    match hello.role {
        Role::Enrol => enrol(shared, stream, &peer).await,
        Role::NewSession { .. }
        | Role::Session { .. }
        | Role::Admin
        | Role::Node { .. }
        | Role::Relayed { .. } => welcome(shared, stream, &peer, (hello, protocol), id).await,
    }
}

/// Why this peer may not be what it says it is.
fn refusal<H: Handler>(
    shared: &Shared<H>,
    peer: &Peer,
    hello: &Hello,
    passed_on: bool,
) -> Option<(Refusal, Failure)> {
    let (refusal, why) = match (peer, &hello.role) {
        (Peer::Tls { .. }, Role::Node { id }) if relay::node_of(peer) != Some(id.0) => {
            (Refusal::Certificate, format!("the certificate is not that of node {id}"))
        }
        (Peer::Unix { .. } | Peer::TlsAnonymous { .. }, Role::Node { .. }) => {
            (Refusal::Certificate, "nodes come with their certificate".into())
        }
        (_, Role::Enrol) => return None,
        (Peer::TlsAnonymous { .. }, _) => {
            let why = "no client certificate: enrol first (`cfs mount --token`)";
            (Refusal::Certificate, why.into())
        }
        (Peer::Tls { certificate, .. }, _) if certificate.expires_secs <= now_secs() => {
            (Refusal::Dates, "the certificate has ended: enrol again with a new token".into())
        }
        (Peer::Tls { .. }, _) if !shared.admits(peer) => {
            (Refusal::Revoked, "the certificate was revoked: enrol again with a new token".into())
        }
        // Of a connection that is passed on the first node has looked.
        (Peer::Unix { uid, .. }, _) if !passed_on && !shared.allowed_uids.contains(uid) => {
            (Refusal::User, format!("uid {uid} may not use this socket"))
        }
        (Peer::Unix { .. } | Peer::Tls { .. }, _) => return None,
    };
    Some((refusal, Failure::Refused(why)))
}

/// The first frame.
enum Greeting {
    Hello(Hello),
    /// Of a program that speaks other versions; the rest of its greeting may mean anything.
    Foreign(NoCommonVersion),
    /// Another request.
    Other,
}

/// What every version of a greeting begins with, and who says it as far as that is known.
fn foreign(protocols: Versions, who: &'static str, meta: &[u8]) -> Option<NoCommonVersion> {
    let begin: (u32, Versions, String) = postcard::take_from_bytes(meta).ok()?.0;
    let (kind, theirs, build) = begin;
    if kind != 0 {
        return None;
    }
    protocols.common(theirs, who, &build).err()
}

async fn read_hello<S: AsyncRead + Unpin>(
    protocols: Versions,
    who: &'static str,
    stream: &mut BufReader<S>,
) -> Result<Greeting, FrameError> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let announced = frame::parse_header(&header)?;
    // Who has not greeted yet gets no memory for what no greeting has.
    if announced.meta_len > HELLO_META_LEN_MAX {
        return Err(FrameError::MetaTooLong(announced.meta_len as u64));
    }
    let frame = frame::read_body(stream, &header).await?;
    if frame.kind == Kind::Request
        && let Some(why) = foreign(protocols, who, &frame.meta)
    {
        return Ok(Greeting::Foreign(why));
    }
    let Request::Hello(mut hello) = frame.message(Kind::Request)? else {
        return Ok(Greeting::Other);
    };
    let Some(inos) = relay::open_of(&mut hello) else {
        return match frame.data.is_empty() {
            true => Ok(Greeting::Hello(hello)),
            false => Err(FrameError::DataTooLong(frame.data.len() as u64)),
        };
    };
    let (open, []) = frame.data.as_chunks() else {
        return Err(FrameError::Trailing(frame.data.len() % size_of::<u64>()));
    };
    *inos = open.iter().map(|ino| Ino(u64::from_le_bytes(*ino))).collect();
    Ok(Greeting::Hello(hello))
}

async fn welcome<H: Handler, S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared<H>>,
    stream: &mut BufReader<S>,
    peer: &Peer,
    (hello, protocol): (Hello, u32),
    id: u64,
) -> Result<Option<Greeted<H>>, FrameError> {
    let welcome = match shared.handler.hello(peer, &hello).await {
        Ok(welcome) => Welcome { protocol, ..welcome },
        Err(failure) => {
            if let Failure::Protocol(why) = &failure {
                shared.handler.refused(&peer.source(), Refusal::Garbage, why);
            }
            return refuse(stream, failure).await;
        }
    };
    let session = match hello.role {
        Role::Admin | Role::Enrol | Role::Node { .. } | Role::Relayed { .. } => {
            raftmeta_types::SessionId::SERVER
        }
        Role::NewSession { .. } | Role::Session { .. } => {
            if !shared.join(welcome.session) {
                let why = format!("more than {SESSION_CONNECTIONS_MAX} connections of a session");
                shared.handler.refused(&peer.source(), Refusal::Crowd, &why);
                return refuse(stream, Failure::Refused(why)).await;
            }
            welcome.session
        }
    };
    let conn = Conn { id, peer: peer.clone(), session, protocol, hello };
    let ended = Ended { shared: shared.clone(), conn };
    reply(stream, &Response::Welcome(welcome), &[]).await?;
    Ok(Some(Greeted::Here(Box::new(ended))))
}

async fn refuse<H: Handler, S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    failure: Failure,
) -> Result<Option<Greeted<H>>, FrameError> {
    reply(stream, &Response::Failed(failure), &[]).await?;
    Ok(None)
}

async fn enrol<H: Handler, S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared<H>>,
    stream: &mut BufReader<S>,
    peer: &Peer,
) -> Result<Option<Greeted<H>>, FrameError> {
    reply(stream, &Response::Done, &[]).await?;
    match frame::read_async(stream).await?.message(Kind::Request)? {
        Request::Enrol(enrolment) => {
            let answer = shared.handler.enrol(peer, enrolment).await;
            reply(stream, &answer.unwrap_or_else(Response::Failed), &[]).await?;
            Ok(None)
        }
        Request::Join(join) => {
            let answer = shared.handler.join(peer, join).await;
            reply(stream, &answer.unwrap_or_else(Response::Failed), &[]).await?;
            Ok(None)
        }
        _ => {
            let why = "only Enrol or Join may follow";
            shared.handler.refused(&peer.source(), Refusal::Garbage, &why);
            refuse(stream, Failure::Protocol(why.into())).await
        }
    }
}

/// Waits long for the start of a frame, briefly for its rest. `None` at its end or at stop.
async fn next<S: AsyncRead + Unpin, H>(
    shared: &Shared<H>,
    stream: &mut BufReader<S>,
) -> Result<Option<Frame>, FrameError> {
    let mut stop = shared.stop.clone();
    let mut header = [0; HEADER_LEN];
    let first = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => return Ok(None),
        first = timeout(IDLE_MAX, stream.read(&mut header)) => match first {
            Ok(first) => first?,
            Err(_) => return Ok(None),
        },
    };
    if first == 0 {
        return Ok(None);
    }
    let rest = async {
        stream.read_exact(&mut header[first..]).await?;
        frame::read_body(stream, &header).await
    };
    timeout(STALL_MAX, rest).await.unwrap_or(Err(stalled())).map(Some)
}

async fn requests<H: Handler, S: AsyncRead + AsyncWrite + Unpin>(
    ended: &Ended<H>,
    stream: &mut BufReader<S>,
) -> Result<(), FrameError> {
    while let Some(frame) = next(&ended.shared, stream).await? {
        let Step { response, data, events } = answer(ended, frame).await?;
        reply(stream, &response, &data).await?;
        if let Some(events) = events {
            return push(&ended.shared, stream, events).await;
        }
        if matches!(response, Response::Failed(Failure::Protocol(_))) {
            linger(stream).await;
            return Ok(());
        }
    }
    Ok(())
}

/// What a request leads to.
pub(super) struct Step {
    /// A `Failure::Protocol` ends the connection after it.
    pub(super) response: Response,
    pub(super) data: Vec<Bytes>,
    /// To be pushed from now on.
    pub(super) events: Option<mpsc::Receiver<Event>>,
}

/// # Errors
/// The frame is no request.
pub(super) async fn answer<H: Handler>(ended: &Ended<H>, frame: Frame) -> Result<Step, FrameError> {
    let Ended { shared, conn } = ended;
    let mut events = None;
    let (response, data) = match frame.message(Kind::Request)? {
        Request::Hello(_) | Request::Enrol(_) | Request::Join(_) => {
            let why = "this connection has greeted already";
            (Response::Failed(Failure::Protocol(why.into())), Vec::new())
        }
        Request::Renew { csr_der } => (renew(shared, conn, csr_der).await, Vec::new()),
        Request::Subscribe => match shared.handler.subscribe(conn) {
            Ok(receiver) => {
                events = Some(receiver);
                (Response::Done, Vec::new())
            }
            Err(failure) => (Response::Failed(failure), Vec::new()),
        },
        request => shared.handler.call(conn, request, frame.data).await,
    };
    if let Response::Failed(Failure::Protocol(why)) = &response {
        ended.refused(why);
    }
    Ok(Step { response, data, events })
}

async fn renew<H: Handler>(shared: &Shared<H>, conn: &Conn, csr_der: Bytes) -> Response {
    let answer = match &conn.peer {
        Peer::Tls { certificate, .. } => shared.handler.renew(certificate, csr_der).await,
        Peer::Unix { .. } | Peer::TlsAnonymous { .. } => {
            Err(Failure::Refused("there is no certificate to renew on this connection".into()))
        }
    };
    answer.unwrap_or_else(Response::Failed)
}

async fn push<H: Handler, S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared<H>,
    stream: &mut BufReader<S>,
    mut events: mpsc::Receiver<Event>,
) -> Result<(), FrameError> {
    let mut stop = shared.stop.clone();
    let mut byte = [0];
    loop {
        let event = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Some(Event::Stopping),
            event = events.recv() => match event {
                Some(event) => Some(event),
                None => return Ok(()),
            },
            // A subscriber says nothing more: any byte, or its end, ends this.
            _ = stream.read(&mut byte) => return Ok(()),
            () = tokio::time::sleep(ALIVE_EVERY) => None,
        };
        let out = stream.get_mut();
        let written = async {
            match &event {
                Some(event) => frame::write_async(out, Kind::Event, event, &[]).await,
                None => frame::write_alive(out).await,
            }
        };
        timeout(STALL_MAX, written).await.unwrap_or(Err(stalled()))?;
        if matches!(event, Some(Event::Stopping)) {
            return Ok(());
        }
    }
}
