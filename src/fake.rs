//! An apiserver for unit tests: a function that maps a request's path and query to an answer. With tokio's paused clock
//! a test simulates hours in milliseconds.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{body::Body as AnswerBody, http::Response};
use futures::{StreamExt, stream};
use http::Request;
use kube::{Client, client::Body};
use serde_json::{Value, json};

pub enum Answer {
    /// An object or a list.
    Object(Value),
    /// A watch that sends these lines and stays open.
    Watch(Vec<Value>),
    /// An error with this status code.
    Error(u16),
    /// An error with this status code and message.
    Refused(u16, &'static str),
    /// Another answer, with this HTTP date.
    At(&'static str, Box<Answer>),
    /// The request panics.
    Panic,
}

/// A client of an apiserver whose answers this function returns.
pub fn apiserver(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Client {
    Client::new(Apiserver(Arc::new(answer)), "default")
}

/// A line of a watch.
pub fn line(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

type Answers = dyn Fn(&str) -> Answer + Send + Sync;

#[derive(Clone)]
struct Apiserver(Arc<Answers>);

impl tower::Service<Request<Body>> for Apiserver {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self(answer) = self.clone();
        Box::pin(async move {
            let (date, answer) = match answer(&request.uri().to_string()) {
                Answer::At(date, answer) => (Some(date), *answer),
                answer => (None, answer),
            };
            let (code, values, open) = match answer {
                Answer::Object(value) => (200, vec![value], false),
                Answer::Watch(lines) => (200, lines, true),
                Answer::Error(code) => (code, vec![json!({"kind": "Status", "apiVersion": "v1", "code": code})], false),
                Answer::Refused(code, message) => (code, vec![json!({"code": code, "message": message})], false),
                Answer::At(..) => panic!("Answer::At must not be nested"),
                Answer::Panic => panic!("the test asked for a panic"),
            };
            let lines = stream::iter(values).map(|value| Ok::<_, Infallible>(format!("{value}\n")));
            let lines = if open { lines.chain(stream::pending()).boxed() } else { lines.boxed() };
            let mut response = Response::new(AnswerBody::from_stream(lines));
            *response.status_mut() = code.try_into().unwrap();
            if let Some(date) = date {
                response.headers_mut().insert(http::header::DATE, date.parse().unwrap());
            }
            Ok(response)
        })
    }
}
