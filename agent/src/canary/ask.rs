//! Asks one node as its peer would: a connection of its own, from the peer's address, through the proxy.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

use super::{Answer, Question};

/// Every server answers this somehow, and none does anything for it: it asks nothing of the
/// database, which may have lost its quorum to the fault.
const REQUEST: &str = "OPTIONS * HTTP/1.1\r\nHost: ";

/// Bytes of an answer that are read, so that the node sees an orderly end.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The rest of an answer is waited for so long.
const FINISH_MAX: Duration = Duration::from_millis(100);

/// Asks once, and waits no longer than `patience`.
pub async fn ask(question: &Question, patience: Duration) -> Answer {
    let socket = match bound(question) {
        Ok(socket) => socket,
        Err(error) => {
            return Answer::NotAsked(format!("ask from {}: {error}", question.from));
        }
    };
    let began = Instant::now();
    let asking = async {
        let mut stream = socket.connect(question.to).await.ok()?;
        let is_answered = !question.is_http || exchange(&mut stream, question.to).await.ok()?;
        is_answered.then(|| (stream, began.elapsed()))
    };
    let Ok(Some((mut stream, took))) = timeout(patience, asking).await else { return Answer::None };
    if question.is_http {
        timeout(FINISH_MAX, finish(&mut stream)).await.ok();
    }
    Answer::In(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
}

/// A socket with the peer's address.
fn bound(question: &Question) -> io::Result<TcpSocket> {
    let socket = match question.from.is_ipv4() {
        true => TcpSocket::new_v4()?,
        false => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    socket.bind(SocketAddr::new(question.from, 0))?;
    Ok(socket)
}

/// Whether anything came back.
async fn exchange(stream: &mut TcpStream, to: SocketAddr) -> io::Result<bool> {
    let request = format!("{REQUEST}{to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(stream.read(&mut [0]).await? > 0)
}

/// Reads to the end of the answer, however it ends.
async fn finish(stream: &mut TcpStream) {
    let mut rest = [0; 1024];
    let mut left = ANSWER_BYTES_MAX;
    while let Ok(count @ 1..) = stream.read(&mut rest).await {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}
