import { useState } from 'preact/hooks';
import { call, type Message } from '../api/client.js';
import { address, go } from '../router.js';
import { announce, attempt } from '../ui/announce.js';
import { ActionDialog, textIn } from '../ui/dialog.js';
import { Notice } from '../ui/notice.js';
import { VirtualList } from '../ui/virtual-list.js';
import { Composer } from './composer.js';
import { textOf } from './describe-event.js';
import { Call, MessageView, Thoughts } from './message.js';
import { OpenCalls } from './open-calls.js';
import { type Reply } from './reply-store.js';
import { type SessionStore } from './session-store.js';

/** So near to the first message that is loaded, those before it are read. */
const AHEAD = 60;
const GUESSED_PX = 90;

/** The messages of the moment that is looked at, and beneath them what can be said now. */
export function Conversation({
  store,
  onPrompt,
}: {
  store: SessionStore;
  onPrompt: (generationId: string) => void;
}) {
  const history = store.history.value;
  const messages = history.messages.value;
  const reply = store.isPast.value ? undefined : store.reply.current.value;
  const problem = history.problem.value;
  const failure = store.reply.failure.value;
  const count = messages.length + (reply ? 1 : 0);
  return (
    <section
      class="conversation"
      aria-label="Conversation"
      aria-busy={history.moment?.version !== store.version.value || !store.isLoaded.value}
    >
      <p class="unseen" role="status">
        {reply ? 'A reply is being written.' : ''}
      </p>
      {problem && <Gone store={store} problem={problem} />}
      {count > 0 ? (
        <VirtualList
          // Another moment is another list, which begins at its end.
          key={history.moment?.version ?? 'now'}
          label="Messages"
          count={count}
          height={GUESSED_PX}
          sticksToEnd
          keyOf={(index) => messages[index]?.id ?? 'reply'}
          onView={(first) => {
            if (first < AHEAD) void history.older();
          }}
          render={(index) => {
            const message = messages[index];
            if (message)
              return (
                <Line
                  store={store}
                  message={message}
                  isLast={index === messages.length - 1}
                  onPrompt={onPrompt}
                />
              );
            return reply ? <LiveReply reply={reply} /> : null;
          }}
        />
      ) : (
        !problem &&
        store.isLoaded.value && (
          <p class="empty">Nothing has been said{store.isPast.value ? ' at this moment' : ' yet'}.</p>
        )
      )}
      {failure && !store.isPast.value && (
        <Notice problem={failure} retry={() => void attempt(() => store.reply.ask({}))} />
      )}
      {!store.isPast.value && store.session.value && <OpenCalls store={store} />}
      {store.session.value && !store.isPast.value && <Composer store={store} />}
    </section>
  );
}

function Gone({
  store,
  problem,
}: {
  store: SessionStore;
  problem: NonNullable<SessionStore['problem']['value']>;
}) {
  if (problem.code !== 'session-erased')
    return <Notice problem={problem} retry={() => void store.history.value.older()} />;
  return (
    <div class="notice" role="status">
      <strong>What was said here was erased</strong>
      <p>
        The key of these events was destroyed, so nobody can read them again. That they happened, when, and
        who did it is still there.
      </p>
    </div>
  );
}

function LiveReply({ reply }: { reply: Reply }) {
  const reasoning = reply.reasoning.value;
  return (
    <article class="message assistant writing" aria-label="assistant, being written" aria-busy="true">
      <header>
        <span class="role assistant">assistant</span> <span class="chip active">writing</span>
      </header>
      {reasoning !== '' && <Thoughts text={reasoning} />}
      {/* The text itself is bound to its node, so that a token is drawn without anything else being looked at. */}
      <div class="text" dir="auto" id="reply">
        {reply.text}
      </div>
      {reply.calls.value.map((one) => (
        <Call key={one.id} name={one.name} args={one.arguments} />
      ))}
    </article>
  );
}

function Line(props: {
  store: SessionStore;
  message: Message;
  isLast: boolean;
  onPrompt: (generationId: string) => void;
}) {
  const { store, message, isLast, onPrompt } = props;
  const [isEditing, setEditing] = useState(false);
  const [isRewinding, setRewinding] = useState(false);
  const { id } = store;
  const isNow = !store.isPast.value && store.session.value !== undefined;
  const isFree = isNow && !store.reply.current.value;
  const generationId = message.generationId;
  return (
    <MessageView message={message}>
      <div class="actions">
        {generationId !== undefined && (
          <button
            type="button"
            class="quiet"
            onClick={() => {
              onPrompt(generationId);
            }}
          >
            Prompt
          </button>
        )}
        {isFree && isLast && message.role === 'assistant' && (
          <button
            type="button"
            class="quiet"
            onClick={() => void attempt(() => store.reply.ask({ regenerate: true }))}
          >
            Regenerate
          </button>
        )}
        {isFree && message.role === 'user' && (
          <button
            type="button"
            class="quiet"
            onClick={() => {
              setEditing(true);
            }}
          >
            Edit
          </button>
        )}
        {isFree && !isLast && (
          <button
            type="button"
            class="quiet"
            onClick={() => {
              setRewinding(true);
            }}
          >
            Rewind to here
          </button>
        )}
        {store.session.value && (
          <button type="button" class="quiet" onClick={() => void attempt(() => forkAt(id, message.version))}>
            Fork from here
          </button>
        )}
        <a href={address(['sessions', id], { at: message.version })}>Moment</a>
      </div>
      {isEditing && (
        <ActionDialog
          title="Edit and answer again"
          action="Send"
          onClose={() => {
            setEditing(false);
          }}
          run={async (form) => {
            await call('post', '/v1/sessions/{id}/rewind', {
              path: { id },
              body: { toVersion: message.version - 1 },
            });
            void attempt(() => store.reply.ask({ message: textIn(form, 'text') ?? '' }));
          }}
        >
          <p>
            This message and all after it leave the history; the log keeps them, and the slider goes back to
            them.
          </p>
          <label>
            <span>Message</span>
            <textarea name="text" rows={6} dir="auto" required defaultValue={textOf(message.content)} />
          </label>
        </ActionDialog>
      )}
      {isRewinding && (
        <ActionDialog
          title="Rewind to here"
          action="Rewind"
          onClose={() => {
            setRewinding(false);
          }}
          run={async () => {
            await call('post', '/v1/sessions/{id}/rewind', {
              path: { id },
              body: { toVersion: message.version },
            });
            announce('The history ends with that message now.');
          }}
        >
          <p>
            All messages after this one leave the history; the log keeps them, and the slider goes back to
            them.
          </p>
        </ActionDialog>
      )}
    </MessageView>
  );
}

/** Makes a session that goes on from a version, and opens it. */
export async function forkAt(id: string, version: number): Promise<void> {
  const fork = await call('post', '/v1/sessions/{id}/fork', { path: { id }, body: { at: version } });
  announce(`A fork was made: ${fork.id}.`);
  go(['sessions', fork.id]);
}
