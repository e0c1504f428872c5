import { useEffect, useRef } from 'preact/hooks';
import { numberOf, timeOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { Json } from '../ui/text.js';
import { type ListControl, VirtualList } from '../ui/virtual-list.js';
import { Changes } from './changes.js';
import { describeEvent } from './describe-event.js';
import { Prompt } from './prompt.js';
import { type SessionStore } from './session-store.js';

export const TABS = ['events', 'state', 'prompt', 'changes'] as const;
export type Tab = (typeof TABS)[number];
const NAMES = { events: 'Events', state: 'State', prompt: 'Prompt', changes: 'Changes' } as const;

const LINE_PX = 34;
/** Scrolling passes by many pages; only where it rests is read. */
const REST_MS = 80;

export function SidePanel(props: {
  store: SessionStore;
  tab: Tab;
  onTab: (tab: Tab) => void;
  from: number | undefined;
  generationId: string | undefined;
}) {
  const { store, tab, onTab, from, generationId } = props;
  const move = (by: number): void => {
    const next = TABS[(TABS.indexOf(tab) + by + TABS.length) % TABS.length] ?? 'events';
    onTab(next);
    document.getElementById(`tab-${next}`)?.focus();
  };
  return (
    <section class="side" aria-label="Behind the conversation">
      <div
        role="tablist"
        aria-label="What is shown"
        onKeyDown={(event) => {
          if (event.key === 'ArrowRight') move(1);
          if (event.key === 'ArrowLeft') move(-1);
        }}
      >
        {TABS.map((one) => (
          <button
            key={one}
            id={`tab-${one}`}
            type="button"
            role="tab"
            aria-selected={one === tab}
            aria-controls="panel"
            tabIndex={one === tab ? 0 : -1}
            onClick={() => {
              onTab(one);
            }}
          >
            {NAMES[one]}
          </button>
        ))}
      </div>
      <div id="panel" class="panel" role="tabpanel" aria-labelledby={`tab-${tab}`}>
        {tab === 'events' && <Events store={store} />}
        {tab === 'state' && <StateView store={store} />}
        {tab === 'prompt' && <Prompt store={store} generationId={generationId} />}
        {tab === 'changes' && <Changes store={store} from={from} />}
      </div>
    </section>
  );
}

function Events({ store }: { store: SessionStore }) {
  const { trail } = store;
  const end = trail.end.value;
  const shown = store.shown.value;
  const list = useRef<ListControl | undefined>(undefined);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  useEffect(() => {
    list.current?.show(shown - 1);
  }, [shown]);
  if (trail.problem.value) return <Notice problem={trail.problem.value} />;
  if (end === 0) return null;
  return (
    <VirtualList
      label="Events"
      count={end}
      height={LINE_PX}
      isFixed
      control={list}
      keyOf={(index) => String(index + 1)}
      onView={(first, last) => {
        clearTimeout(timer.current);
        timer.current = setTimeout(() => void trail.need(first + 1, last + 1), REST_MS);
      }}
      render={(index) => {
        const version = index + 1;
        const event = trail.at(version);
        return (
          <button
            type="button"
            class={`event ${event?.erased ? 'erased' : ''} ${event?.type === 'SessionCreated' ? 'begins' : ''}`}
            aria-current={version === shown ? 'step' : undefined}
            title={event && `${timeOf(event.time)} by ${event.actor}`}
            onClick={() => {
              store.look(version);
            }}
          >
            <span class="version">{numberOf(version)}</span>
            {event ? (
              <>
                <b>{event.type}</b>
                {event.type === 'SessionCreated' && <span class="chip">incarnation {event.incarnation}</span>}
                <span class="what" dir="auto">
                  {describeEvent(event)}
                </span>
              </>
            ) : (
              <span class="what">…</span>
            )}
          </button>
        );
      }}
    />
  );
}

function StateView({ store }: { store: SessionStore }) {
  const state = store.state.value;
  if (store.stateProblem.value) return <Notice problem={store.stateProblem.value} />;
  if (!state) return null;
  const { usage } = state;
  const event = store.trail.at(store.shown.value);
  return (
    <div class="scrolls" role="region" aria-label="State at the moment" tabIndex={0}>
      <dl class="facts">
        <dt>Status</dt>
        <dd>{state.status}</dd>
        <dt>Version</dt>
        <dd>
          {numberOf(state.version)}, incarnation {state.incarnation}, {timeOf(state.time)}
        </dd>
        <dt>Messages</dt>
        <dd>
          {numberOf(state.messageCount)}, history since version {numberOf(state.historyStart)}
        </dd>
        <dt>Usage</dt>
        <dd>
          {numberOf(usage.inputTokens)} in, {numberOf(usage.outputTokens)} out, {numberOf(usage.cachedTokens)}{' '}
          cached, {numberOf(usage.reasoningTokens)} for thoughts
        </dd>
        <dt>Approvals</dt>
        <dd>
          {state.approvals.length === 0
            ? 'none'
            : state.approvals.map(({ tool, scope, expiresAt }) => (
                <div key={tool}>
                  {tool}: {scope}
                  {expiresAt !== undefined && `, until ${timeOf(expiresAt)}`}
                </div>
              ))}
        </dd>
        <dt>Open tool calls</dt>
        <dd>
          {state.openToolCalls.length === 0 ? 'none' : state.openToolCalls.map(({ name }) => name).join(', ')}
        </dd>
        <dt>Generation</dt>
        <dd>{state.generation ? `${state.generation.model}, running` : 'none'}</dd>
        <dt>Title</dt>
        <dd dir="auto">{state.title ?? 'none'}</dd>
        <dt>Owner</dt>
        <dd dir="auto">{state.owner ?? 'nobody'}</dd>
        <dt>Legal hold</dt>
        <dd>{state.legalHold ? 'yes' : 'no'}</dd>
        {state.erasedUpTo !== undefined && (
          <>
            <dt>Erased</dt>
            <dd>up to version {numberOf(state.erasedUpTo)}</dd>
          </>
        )}
      </dl>
      <h2>Metadata</h2>
      <Json value={state.metadata} label="Metadata" />
      {event && (
        <>
          <h2>The event of this moment</h2>
          <Json value={event} label="Event" />
        </>
      )}
    </div>
  );
}
