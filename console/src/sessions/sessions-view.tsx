import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { call } from '../api/client.js';
import { focusOn, useKeys } from '../keys.js';
import { address, adjust, go, type Route } from '../router.js';
import { announce } from '../ui/announce.js';
import { ActionDialog, textIn } from '../ui/dialog.js';
import { countOf, visible } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { Time } from '../ui/time.js';
import { type ListControl, VirtualList } from '../ui/virtual-list.js';
import { type SessionFilter, SessionsStore } from './sessions-store.js';

const LINE_PX = 56;
/** So near to the end of what is loaded, the next page is read. */
const AHEAD = 30;
/** Typing is waited for, so that not each letter is a query. */
const TYPING_MS = 250;

/** The session that was opened last, so that who comes back finds the place again. */
let lastOpened: string | undefined;

export function SessionsView({ query }: Route) {
  const q = query.get('q') ?? '';
  const status = statusIn(query.get('status'));
  const owner = query.get('owner') ?? '';
  const store = useMemo(() => new SessionsStore({ q, status, owner }), [q, status, owner]);
  useEffect(() => store.start(), [store]);
  const [isCreating, setCreating] = useState(false);
  const list = useRef<ListControl | undefined>(undefined);
  const place = useRef(-1);
  const sessions = store.sessions.value;
  const step = (by: number): void => {
    place.current = Math.min(Math.max(place.current + by, 0), sessions.length - 1);
    if (sessions.length > 0) list.current?.focus(place.current);
  };
  useKeys({
    j: () => {
      step(1);
    },
    k: () => {
      step(-1);
    },
    n: () => {
      setCreating(true);
    },
    '/': () => {
      focusOn('#filter');
    },
  });
  useEffect(() => {
    const index = sessions.findIndex(({ id }) => id === lastOpened);
    if (index < 0) return;
    lastOpened = undefined;
    place.current = index;
    list.current?.focus(index);
  }, [sessions]);

  return (
    <div class="view">
      <header class="bar">
        <h1 tabIndex={-1}>Sessions</h1>
        <span class={`live ${store.isLive.value ? 'on' : ''}`}>
          {store.isLive.value ? 'live' : 'every 5 s'}
        </span>
        <Filters filter={store.filter} />
        <button
          type="button"
          class="primary"
          onClick={() => {
            setCreating(true);
          }}
        >
          New session
        </button>
        <p class="what-it-is">
          Conversations of your applications. Each is kept as events: open one to read it, to go to any moment
          of it, and to go on from there.
        </p>
      </header>
      {store.problem.value && <Notice problem={store.problem.value} retry={() => void store.more()} />}
      {sessions.length > 0 && (
        <VirtualList
          label="Sessions"
          count={sessions.length}
          height={LINE_PX}
          isFixed
          control={list}
          keyOf={(index) => sessions[index]?.id ?? ''}
          onView={(_, last) => {
            if (last > sessions.length - AHEAD) void store.more();
          }}
          render={(index) => {
            const session = sessions[index];
            if (!session) return null;
            const { inputTokens, outputTokens } = session.usage;
            return (
              <a
                class="row"
                href={address(['sessions', session.id])}
                onFocus={() => {
                  place.current = index;
                }}
                onClick={() => {
                  lastOpened = session.id;
                }}
              >
                <span class="name">
                  <b dir="auto">{visible(session.title ?? session.id)}</b>
                  <span class="id">{session.id}</span>
                </span>
                <span class="owner" dir="auto">
                  {session.owner ?? ''}
                </span>
                <span class={`chip ${session.status}`}>{session.status}</span>
                <span class="figure">{countOf(session.messageCount, 'message')}</span>
                <span class="figure">{countOf(inputTokens + outputTokens, 'token')}</span>
                <Time at={session.lastActivityAt} />
              </a>
            );
          }}
        />
      )}
      {store.isLoaded.value && sessions.length === 0 && (
        <div class="empty">
          <p>{q || owner || status !== 'all' ? 'No session matches.' : 'There are no sessions yet.'}</p>
          {!q && !owner && status === 'all' && (
            <p>
              Press <kbd>n</kbd> to begin one, or send a message to <code>POST /v1/chat</code>.
            </p>
          )}
        </div>
      )}
      {isCreating && (
        <CreateDialog
          onClose={() => {
            setCreating(false);
          }}
        />
      )}
    </div>
  );
}

const statusIn = (text: string | null): SessionFilter['status'] =>
  text === 'active' || text === 'expired' ? text : 'all';

function Filters({ filter }: { filter: SessionFilter }) {
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const type = (name: 'q' | 'owner', value: string): void => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => {
      adjust(['sessions'], { [name]: value });
    }, TYPING_MS);
  };
  return (
    <form
      class="filters"
      role="search"
      onSubmit={(event) => {
        event.preventDefault();
      }}
    >
      <input
        id="filter"
        type="search"
        placeholder="Title or metadata"
        aria-label="Filter by title or metadata"
        defaultValue={filter.q}
        onInput={(event) => {
          type('q', event.currentTarget.value);
        }}
      />
      <input
        type="search"
        placeholder="Owner"
        aria-label="Filter by owner"
        defaultValue={filter.owner}
        onInput={(event) => {
          type('owner', event.currentTarget.value);
        }}
      />
      <select
        aria-label="Filter by status"
        value={filter.status}
        onChange={(event) => {
          adjust(['sessions'], {
            status: event.currentTarget.value === 'all' ? undefined : event.currentTarget.value,
          });
        }}
      >
        <option value="all">any status</option>
        <option value="active">active</option>
        <option value="expired">expired</option>
      </select>
    </form>
  );
}

function CreateDialog({ onClose }: { onClose: () => void }) {
  const create = async (form: FormData): Promise<void> => {
    const id = textIn(form, 'id');
    const title = textIn(form, 'title');
    const owner = textIn(form, 'owner');
    const session = await call('post', '/v1/sessions', {
      body: {
        ...(id !== undefined && { id }),
        ...(title !== undefined && { title }),
        ...(owner !== undefined && { owner }),
      },
    });
    announce(`The session ${session.id} is there.`);
    go(['sessions', session.id]);
  };
  return (
    <ActionDialog title="New session" action="Create" onClose={onClose} run={create}>
      <label>
        <span>Title (may be left out)</span>
        <input name="title" maxLength={300} dir="auto" />
      </label>
      <label>
        <span>Id (one is made unless you give one)</span>
        <input name="id" maxLength={128} spellcheck={false} />
      </label>
      <label>
        <span>Owner (whose it is; stays with the id for ever)</span>
        <input name="owner" maxLength={255} dir="auto" />
      </label>
    </ActionDialog>
  );
}
