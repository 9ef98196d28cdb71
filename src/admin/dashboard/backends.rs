//! The table of backends, with what can be done to each, and the form that adds one.

use maud::{Markup, html};

use super::page::Ctx;
use super::shown::{self, Backend};
use super::words::Word;

/// The section.
pub(super) fn section(backends: &[Backend], ctx: Ctx<'_>) -> Markup {
    html! {
        section aria-labelledby="backends" {
            h2 id="backends" tabindex="-1" { (ctx.say(Word::Backends)) }
            (table(backends, ctx))
            template id="backend-row" { (row(&Backend::default(), ctx)) }
            (add_form(ctx))
        }
    }
}

const COLUMNS: [(Word, Option<Word>); 10] = [
    (Word::Name, None),
    (Word::State, None),
    (Word::Queue, Some(Word::QueueHint)),
    (Word::Clients, Some(Word::ClientsHint)),
    (Word::Calls, None),
    (Word::Pace, None),
    (Word::Success, None),
    (Word::Memory, Some(Word::MemoryHint)),
    (Word::Version, None),
    (Word::Actions, None),
];

// Roles are said aloud: on a phone rows are laid out as cards, and some browsers take a table
// whose parts are no longer displayed as such for none.
fn table(backends: &[Backend], ctx: Ctx<'_>) -> Markup {
    html! {
        table.backends role="table" {
            caption.hidden { (ctx.say(Word::BackendsCaption)) }
            thead role="rowgroup" { tr role="row" {
                @for (word, hint) in COLUMNS {
                    th scope="col" role="columnheader" {
                        (ctx.say(word))
                        @if let Some(hint) = hint { small { (ctx.say(hint)) } }
                    }
                }
            } }
            tbody id="rows" role="rowgroup" data-empty=(ctx.say(Word::NoBackends)) {
                @for backend in backends { (row(backend, ctx)) }
            }
        }
    }
}

fn row(backend: &Backend, ctx: Ctx<'_>) -> Markup {
    let state = &backend.state;
    html! {
        tr role="row" data-name=(backend.name) data-state=(state) {
            th.name scope="row" role="rowheader" {
                b data-f="name" { (backend.name) }
                small.badge data-f="backup" hidden[!backend.backup] { (ctx.say(Word::Backup)) }
                small data-f="url" { (backend.url) }
            }
            td role="cell" {
                span.pill data-f="state" data-state=(state) { (ctx.say(Word::of_state(state))) }
                small.error data-f="error" { (shown_error(backend)) }
            }
            (cell(Word::Queue, "queue", &queue(backend), ctx))
            (cell(Word::Clients, "clients", &clients(backend), ctx))
            (cell(Word::Calls, "calls", &backend.calls.to_string(), ctx))
            (cell(Word::Pace, "pace", &pace(backend), ctx))
            (cell(Word::Success, "success", &success(backend), ctx))
            (memory(backend, ctx))
            td role="cell" data-label=(ctx.say(Word::Version)) {
                span data-f="version" { (backend.version.as_deref().unwrap_or("–")) }
                small data-f="types" { (backend.task_types.join(", ")) }
            }
            td.acts role="cell" { (acts(backend, ctx)) }
        }
    }
}

fn cell(label: Word, field: &str, value: &str, ctx: Ctx<'_>) -> Markup {
    html! {
        td.number role="cell" data-label=(ctx.say(label)) { span data-f=(field) { (value) } }
    }
}

fn memory(backend: &Backend, ctx: Ctx<'_>) -> Markup {
    let memory = shown::memory(&backend.devices);
    let (used, total) = memory.unwrap_or((0.0, 1.0));
    let text = memory
        .map_or_else(|| "–".to_owned(), |(used, total)| format!("{used:.1} / {total:.1} GiB"));
    html! {
        td.number role="cell" data-label=(ctx.say(Word::Memory)) {
            span data-f="memory" { (text) }
            meter data-f="meter" hidden[memory.is_none()] aria-label=(ctx.say(Word::Memory))
                min="0" max=(format!("{total:.3}")) value=(format!("{used:.3}")) {}
        }
    }
}

fn acts(backend: &Backend, ctx: Ctx<'_>) -> Markup {
    let pressed = |wanted: &str| if backend.wanted == wanted { "true" } else { "false" };
    html! {
        form method="post" action="/dashboard/backend" {
            (ctx.token())
            input type="hidden" name="name" data-f="field" value=(backend.name);
            div.segments role="group" data-f="group"
                data-label=(ctx.say(Word::Service))
                aria-label={ (ctx.say(Word::Service)) " " (backend.name) } {
                @for (what, wanted, word) in [
                    ("enable", "enabled", Word::Enable),
                    ("drain", "drain", Word::Drain),
                    ("disable", "disabled", Word::Disable),
                ] {
                    button name="do" value=(what) data-wanted=(wanted)
                        aria-pressed=(pressed(wanted)) { (ctx.say(word)) }
                }
            }
            details.remove {
                summary { (ctx.say(Word::Remove)) "…" }
                div {
                    button name="do" value="leave" { (ctx.say(Word::RemoveLater)) }
                    button.danger name="do" value="remove" { (ctx.say(Word::RemoveNow)) }
                }
            }
        }
    }
}

/// What went wrong matters while it is wrong.
fn shown_error(backend: &Backend) -> &str {
    let wrong = matches!(backend.state.as_str(), "down" | "suspect" | "ejected");
    backend.last_error.as_deref().filter(|_| wrong).unwrap_or_default()
}

fn queue(backend: &Backend) -> String {
    format!("{} + {}", backend.queue.running, backend.queue.pending)
}

fn clients(backend: &Backend) -> String {
    format!("{} / {}", backend.sessions, backend.websockets)
}

fn pace(backend: &Backend) -> String {
    if backend.prompt_seconds > 0.0 { shown::seconds(backend.prompt_seconds) } else { "–".into() }
}

fn success(backend: &Backend) -> String {
    if backend.calls == 0 { "–".into() } else { format!("{:.1} %", 100.0 * backend.success_rate) }
}

fn add_form(ctx: Ctx<'_>) -> Markup {
    html! {
        details.add {
            summary { (ctx.say(Word::Add)) }
            form method="post" action="/dashboard/add" data-reset="" {
                (ctx.token())
                (field(Word::Name, ctx, &html! {
                    input name="name" required maxlength="64" pattern="[A-Za-z0-9._\\-]+" autocomplete="off" placeholder="comfy-4";
                }))
                (field(Word::Address, ctx, &html! {
                    input name="url" type="url" required maxlength="2000" autocomplete="off"
                        placeholder="http://10.0.0.4:8188";
                }))
                (field(Word::Weight, ctx, &html! {
                    input name="weight" type="number" min="1" max="100" placeholder="1";
                }))
                (field(Word::MaxQueue, ctx, &html! {
                    input name="max_queue" type="number" min="1" placeholder="10";
                }))
                (field(Word::TaskTypes, ctx, &html! {
                    input name="task_types" maxlength="1000" autocomplete="off"
                        title=(ctx.say(Word::TaskTypesHint)) placeholder="video, image";
                }))
                button.primary { (ctx.say(Word::AddNow)) }
            }
        }
    }
}

fn field(label: Word, ctx: Ctx<'_>, input: &Markup) -> Markup {
    html! { label { span { (ctx.say(label)) } (input) } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::dashboard::words::Lang;

    #[test]
    fn names_from_outside_are_escaped_everywhere() {
        let nasty = "<script>alert(1)</script>\"'&";
        let backend = Backend {
            name: nasty.into(),
            url: format!("http://{nasty}"),
            state: "down".into(),
            version: Some(nasty.into()),
            task_types: vec![nasty.into()],
            last_error: Some(nasty.into()),
            ..Backend::default()
        };
        let page = section(&[backend], Ctx { lang: Lang::En, csrf: "c" }).into_string();
        assert!(!page.contains("<script") && !page.contains("\"'"), "{page}");
        assert!(page.matches("&lt;script&gt;").count() >= 6);
    }

    #[test]
    fn memory_is_shown_when_a_device_tells_it() {
        let device =
            shown::Device { vram_total: 24.0 * 1_073_741_824.0, vram_free: 1_073_741_824.0 };
        let backend = Backend { devices: vec![device], ..Backend::default() };
        let ctx = Ctx { lang: Lang::En, csrf: "" };
        assert!(row(&backend, ctx).into_string().contains("23.0 / 24.0 GiB"));
        assert!(!row(&Backend::default(), ctx).into_string().contains("GiB"));
    }
}
