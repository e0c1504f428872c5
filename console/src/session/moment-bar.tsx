import { useEffect } from 'preact/hooks';
import { useKeys } from '../keys.js';
import { adjust } from '../router.js';
import { announce, attempt } from '../ui/announce.js';
import { numberOf, timeOf } from '../ui/format.js';
import { forkAt } from './conversation.js';
import { type SessionStore } from './session-store.js';

/** A browser takes so many changes of the address in half a minute; the slider makes more. */
const ADDRESS_MS = 250;

/** The slider through the time of a session, and what can be done with the moment that it is at. */
export function MomentBar({ store, from }: { store: SessionStore; from: number | undefined }) {
  const { trail } = store;
  const end = trail.end.value;
  const shown = store.shown.value;
  const isPast = store.isPast.value;
  const event = trail.at(shown);
  const version = store.version.value;
  useEffect(() => {
    const timer = setTimeout(() => {
      store.addressed = version;
      adjust(['sessions', store.id], { at: version });
    }, ADDRESS_MS);
    return () => {
      clearTimeout(timer);
    };
  }, [version]);
  const back = (): void => {
    store.step(-1);
  };
  const on = (): void => {
    store.step(1);
  };
  useKeys({
    '[': back,
    ']': on,
    k: back,
    j: on,
    '.': () => {
      store.look(undefined);
    },
  });
  if (trail.problem.value?.status === 403 || end === 0) return null;
  const about = `${numberOf(shown)} of ${numberOf(end)}${event ? `: ${event.type}, ${timeOf(event.time)}` : ''}`;
  const isOfNow = event === undefined || event.incarnation === trail.at(end)?.incarnation || !isPast;
  return (
    <section class={`moment ${isPast ? 'past' : ''}`} aria-label="Moment">
      <div class="way">
        <button type="button" class="quiet" aria-label="One event back" disabled={shown <= 1} onClick={back}>
          ◂
        </button>
        <input
          id="slider"
          type="range"
          aria-label="Moment of the session"
          aria-valuetext={about}
          min={1}
          max={end}
          value={shown}
          onInput={(input) => {
            store.look(input.currentTarget.valueAsNumber);
          }}
        />
        <button type="button" class="quiet" aria-label="One event on" disabled={shown >= end} onClick={on}>
          ▸
        </button>
      </div>
      <p class="about">
        {isPast ? (
          <span class="chip past">{store.isDeleted.value && shown === end ? 'as it ended' : 'past'}</span>
        ) : (
          <span class="chip active">now</span>
        )}{' '}
        <span class="when">{about}</span>
        {event && <span> by {event.actor}</span>}
        {event && event.incarnation > 1 && <span> · incarnation {event.incarnation}</span>}
      </p>
      <div class="buttons">
        {isPast && !store.isDeleted.value && (
          <button
            type="button"
            onClick={() => {
              store.look(undefined);
            }}
          >
            Back to now
          </button>
        )}
        {from === undefined ? (
          <button
            type="button"
            onClick={() => {
              adjust(['sessions', store.id], { from: shown });
              announce('Move the slider to the other moment: what changed in between is under Changes.');
            }}
          >
            Compare from here
          </button>
        ) : (
          <button
            type="button"
            onClick={() => {
              adjust(['sessions', store.id], { from: undefined });
            }}
          >
            Stop comparing with {numberOf(from)}
          </button>
        )}
        {store.session.value && isOfNow && (
          <button type="button" onClick={() => void attempt(() => forkAt(store.id, shown))}>
            Fork from here
          </button>
        )}
        <button
          type="button"
          onClick={() =>
            void attempt(async () => {
              if (!isSecureContext)
                throw new Error(
                  'Browsers copy over HTTPS or on this machine alone. The address of the page is the link.',
                );
              await navigator.clipboard.writeText(location.href.replace(/#.*/, '') + linkTo(store.id, shown));
              announce('The link to this moment is copied.');
            })
          }
        >
          Copy link
        </button>
      </div>
    </section>
  );
}

const linkTo = (id: string, version: number): string => `#/sessions/${encodeURIComponent(id)}?at=${version}`;
