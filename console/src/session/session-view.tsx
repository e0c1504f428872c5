import { useEffect, useMemo, useState } from 'preact/hooks';
import { useKeys } from '../keys.js';
import { address, go, route } from '../router.js';
import { visible } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { Actions } from './actions.js';
import { Conversation } from './conversation.js';
import { MomentBar } from './moment-bar.js';
import { PlannedErasures } from './planned-erasures.js';
import { SessionStore } from './session-store.js';
import { SidePanel, type Tab } from './side-panel.js';

/** One session: its conversation, and beside it all that ever happened to it. */
export function SessionView({ id, query }: { id: string; query: URLSearchParams }) {
  const store = useMemo(() => new SessionStore(id), [id]);
  const [tab, setTab] = useState<Tab>('events');
  const [generationId, setGenerationId] = useState<string | undefined>(undefined);
  const at = numberIn(query, 'at');
  const from = numberIn(query, 'from');
  useEffect(() => store.start(at), [store]);
  // Somebody has followed a link to another moment, or stepped back in the browser. The address may also be one that the
  // slider has made, and has changed again since this was rendered: so the present one is compared.
  useEffect(() => {
    const now = numberIn(route.peek().query, 'at');
    if (now !== store.addressed) store.look(now);
  }, [at]);
  useEffect(() => {
    if (from !== undefined) setTab('changes');
  }, [from]);
  const shown = store.shown.value;
  useEffect(() => {
    setGenerationId(undefined);
  }, [shown]);
  useKeys({
    Escape: () => {
      if (store.isPast.value && !store.isDeleted.value) store.look(undefined);
      else go(['sessions']);
    },
  });
  const session = store.session.value;
  const problem = store.problem.value;
  return (
    <div class="view session">
      <header class="bar">
        <a href={address(['sessions'])} aria-label="Back to the sessions">
          ←
        </a>
        <h1 tabIndex={-1} dir="auto">
          {visible(session?.title ?? id)}
        </h1>
        <span class="id">{id}</span>
        {session && <span class={`chip ${session.status}`}>{session.status}</span>}
        {store.isDeleted.value && <span class="chip past">deleted</span>}
        {session?.owner !== undefined && (
          <span class="owner" dir="auto">
            {session.owner}
          </span>
        )}
        {session?.forkedFrom && (
          <a href={address(['sessions', session.forkedFrom.sessionId], { at: session.forkedFrom.version })}>
            forked from {session.forkedFrom.sessionId}
          </a>
        )}
        {store.isLoaded.value && !problem && <Actions store={store} />}
      </header>
      {problem ? (
        <Notice problem={problem} />
      ) : (
        <>
          <MomentBar store={store} from={from} />
          {store.isLoaded.value && <PlannedErasures store={store} />}
          <div class="split">
            <Conversation
              store={store}
              onPrompt={(chosen) => {
                setGenerationId(chosen);
                setTab('prompt');
              }}
            />
            <SidePanel store={store} tab={tab} onTab={setTab} from={from} generationId={generationId} />
          </div>
        </>
      )}
    </div>
  );
}

function numberIn(query: URLSearchParams, name: string): number | undefined {
  const value = Number(query.get(name));
  return Number.isSafeInteger(value) && value > 0 ? value : undefined;
}
