//! The page: its frame, the farm at a glance, the charts and the events. Tables of backends and
//! tasks have modules of their own.

use maud::{DOCTYPE, Markup, html};

use super::words::{Lang, Word, for_script};
use super::{assets, backends, charts, shown, tasks};
use crate::admin::Admin;
use crate::admin::guard::Access;
use crate::admin::history::Pulse;
use crate::admin::journal::Change;
use crate::admin::views::{Backends, Stats};
use crate::config::Strategy;

/// What every part of the page needs.
#[derive(Clone, Copy)]
pub(super) struct Ctx<'a> {
    /// The language.
    pub(super) lang: Lang,
    /// What forms must carry.
    pub(super) csrf: &'a str,
}

impl Ctx<'_> {
    /// A word in the page's language.
    pub(super) fn say(&self, word: Word) -> &'static str {
        word.say(self.lang)
    }

    /// The hidden field of a form.
    pub(super) fn token(&self) -> Markup {
        html! { input type="hidden" name="csrf" value=(self.csrf); }
    }
}

/// A whole document around a body.
pub(super) fn document(lang: Lang, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang=(lang.html()) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (Word::Title.say(lang)) }
                link rel="icon" type="image/svg+xml" href=(assets::icon());
                link rel="stylesheet" href=(assets::style());
                script src=(assets::script()) defer {}
            }
            (body)
        }
    }
}

/// The dashboard.
pub(super) fn dashboard(
    admin: &Admin,
    access: &Access,
    ctx: Ctx<'_>,
    filter: Option<&str>,
) -> Markup {
    let stats: shown::Stats = shown::read(&Stats::of(&admin.gateway));
    let body = html! {
        body data-words=(for_script(ctx.lang)) data-lang=(ctx.lang.tag()) {
            a.skip href="#backends" { (ctx.say(Word::Skip)) }
            (top(access, ctx))
            main {
                (glance(&stats, admin.history.pulse(), ctx))
                (backends::section(&shown::list(&Backends::of(&admin.gateway)), ctx))
                section aria-labelledby="hour" {
                    h2 id="hour" { (ctx.say(Word::LastHour)) }
                    div id="charts" { (charts::all(&admin.history.samples(), ctx.lang)) }
                }
                (tasks::section(admin, filter, ctx))
                (events(&admin.journal.changes(), ctx))
            }
            p id="notice" role="status" aria-live="polite" {}
            p.hidden id="heard" role="log" aria-live="polite" {}
        }
    };
    document(ctx.lang, &body)
}

fn top(access: &Access, ctx: Ctx<'_>) -> Markup {
    html! {
        header {
            h1 { (assets::mark()) "comfygate" }
            span id="link" data-link="connecting" { (ctx.say(Word::Connecting)) }
            nav aria-label=(ctx.say(Word::Language)) { (languages(ctx.lang)) }
            @if matches!(access, Access::Login { .. }) {
                form method="post" action="/dashboard/logout" data-plain="" {
                    (ctx.token())
                    button.quiet { (ctx.say(Word::LogOut)) }
                }
            }
        }
    }
}

/// The switch of languages.
pub(super) fn languages(current: Lang) -> Markup {
    html! {
        @for lang in Lang::ALL {
            a href={ "?lang=" (lang.tag()) } lang=(lang.html()) hreflang=(lang.html())
                aria-current=[(lang == current).then_some("true")] { (lang.name()) }
        }
    }
}

fn glance(stats: &shown::Stats, pulse: Pulse, ctx: Ctx<'_>) -> Markup {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let tiles = [
        ("queued", Word::Queued, stats.tasks.queued.to_string()),
        ("running", Word::Running, stats.tasks.running.to_string()),
        ("finished", Word::Finished, or_dash(pulse.finished_per_minute.map(|n| format!("{n:.0}")))),
        ("p50", Word::WaitHalf, or_dash(pulse.wait_p50.map(shown::seconds))),
        ("p95", Word::WaitMost, or_dash(pulse.wait_p95.map(shown::seconds))),
        ("sessions", Word::Sessions, stats.sessions.to_string()),
        ("websockets", Word::Sockets, stats.websockets.to_string()),
    ];
    let counts = &stats.backends;
    html! {
        section aria-labelledby="glance" {
            h2.hidden id="glance" { (ctx.say(Word::Glance)) }
            dl.tiles {
                div data-level=(level(counts)) id="health" {
                    dt { (ctx.say(Word::Healthy)) }
                    dd { b data-tile="healthy" { (counts.healthy) } small { "/" span data-tile="total" { (counts.total) } } }
                }
                @for (key, word, value) in tiles {
                    div { dt { (ctx.say(word)) } dd { b data-tile=(key) { (value) } } }
                }
            }
            div.tools {
                form method="post" action="/dashboard/strategy" {
                    (ctx.token())
                    label for="strategy" { (ctx.say(Word::Strategy)) }
                    select id="strategy" name="strategy" {
                        @for (name, _) in Strategy::NAMES {
                            option value=(name) selected[*name == stats.strategy] { (name) }
                        }
                    }
                    button { (ctx.say(Word::Apply)) }
                }
                form method="post" action="/dashboard/check" {
                    (ctx.token())
                    button { (ctx.say(Word::Check)) }
                }
            }
        }
    }
}

/// How well the farm is; the script's `level` says the same.
fn level(counts: &shown::Counts) -> &'static str {
    match (counts.healthy, counts.total) {
        (0, _) => "bad",
        (healthy, total) if healthy < total => "fair",
        _ => "good",
    }
}

fn events(changes: &[Change], ctx: Ctx<'_>) -> Markup {
    html! {
        section aria-labelledby="events-title" {
            h2 id="events-title" { (ctx.say(Word::Events)) }
            div.scroll tabindex="0" role="region" aria-labelledby="events-title" {
                table.log {
                    caption.hidden { (ctx.say(Word::EventsCaption)) }
                    thead { tr {
                        th scope="col" { (ctx.say(Word::When)) }
                        th scope="col" { (ctx.say(Word::Backend)) }
                        th scope="col" { (ctx.say(Word::What)) }
                    } }
                    tbody id="events" data-empty=(ctx.say(Word::NoEvents)) {
                        @for change in changes { (event(change, ctx)) }
                    }
                }
            }
        }
    }
}

fn event(change: &Change, ctx: Ctx<'_>) -> Markup {
    // Who has just been added is not known yet, which goes without saying.
    let to = match (change.from, change.to) {
        (None, Some("unknown")) => Word::Came,
        (_, to) => to.map_or(Word::Gone, Word::of_state),
    };
    let from = change.from.map_or(Word::Came, Word::of_state);
    html! {
        tr {
            td { (time(change.at)) }
            th scope="row" { (change.backend) }
            td {
                @if to != Word::Came { (ctx.say(from)) " → " }
                span.pill data-state=(change.to.unwrap_or("gone")) { (ctx.say(to)) }
                @if let Some(detail) = &change.detail { " " small { (detail) } }
            }
        }
    }
}

/// A time in UTC, which the script shows in the reader's own zone.
pub(super) fn time(at: jiff::Timestamp) -> Markup {
    html! { time datetime=(format!("{at:.3}")) { (at.strftime("%H:%M:%S UTC").to_string()) } }
}

/// A short page with one message.
pub(super) fn message(lang: Lang, title: &str, text: &str, details: &str) -> Markup {
    let body = html! {
        body.narrow {
            main {
                h1 { (title) }
                p { (text) }
                @if !details.is_empty() { p { (details) } }
                p { a href="/" { (Word::Back.say(lang)) } }
            }
        }
    };
    document(lang, &body)
}
