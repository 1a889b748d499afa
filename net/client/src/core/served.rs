//! The model broker behind real sockets, for the tests of the faces.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::core::model::{Model, Peer};

/// The model behind sockets: one port for each shard.
pub(crate) struct Served {
    pub(crate) model: Arc<Mutex<Model>>,
    pub(crate) servers: Vec<String>,
    /// Connections end, one time each, when this is set.
    pub(crate) cut: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Served {
    /// Ends every connection there is.
    pub(crate) fn cut_connections(&self) {
        for connection in self.cut.lock().expect("not poisoned").drain(..) {
            connection.store(true, Ordering::Relaxed);
        }
    }
}

/// Serves a model with this many shards on ports of its own.
pub(crate) fn serve(shards: usize) -> Served {
    let listen = |_| TcpListener::bind("127.0.0.1:0").expect("a port");
    let listeners: Vec<TcpListener> = (0..shards).map(listen).collect();
    let ports = listeners
        .iter()
        .map(|l| l.local_addr().expect("an address").port());
    let ports: Vec<(String, u16)> = ports.map(|port| ("127.0.0.1".to_owned(), port)).collect();
    let served = Served {
        servers: ports
            .iter()
            .map(|(host, port)| format!("{host}:{port}"))
            .collect(),
        model: Arc::new(Mutex::new(Model::new(ports))),
        cut: Arc::default(),
        stop: Arc::default(),
    };
    for (shard, listener) in (0..).zip(listeners) {
        let (model, stop) = (served.model.clone(), served.stop.clone());
        let cut = served.cut.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let this = Arc::new(AtomicBool::new(false));
                cut.lock().expect("not poisoned").push(this.clone());
                let (model, stop) = (model.clone(), stop.clone());
                std::thread::spawn(move || converse(stream, shard, &model, &[&this, &stop]));
            }
        });
    }
    served
}

fn converse(mut stream: TcpStream, shard: u16, model: &Mutex<Model>, ends: &[&AtomicBool]) {
    let mut peer = Peer::on(shard);
    let mut buffer = vec![0; 1 << 16];
    let timeout = Some(Duration::from_millis(1));
    stream
        .set_read_timeout(timeout)
        .expect("a timeout can be set");
    stream.set_nodelay(true).expect("nodelay can be set");
    while !ends.iter().any(|e| e.load(Ordering::Relaxed)) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => model
                .lock()
                .expect("not poisoned")
                .feed(&mut peer, &buffer[..bytes]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                model.lock().expect("not poisoned").push(&mut peer);
            }
            Err(_) => return,
        }
        if stream.write_all(&std::mem::take(&mut peer.out)).is_err() {
            return;
        }
    }
}
