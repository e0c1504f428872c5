import { useState } from 'preact/hooks';
import { call } from '../api/client.js';
import { go } from '../router.js';
import { announce, attempt } from '../ui/announce.js';
import { ActionDialog, textIn } from '../ui/dialog.js';
import { download } from '../ui/download.js';
import { timeOf } from '../ui/format.js';
import { exportOf } from './export.js';
import { type SessionStore } from './session-store.js';

type Action = 'rename' | 'reset' | 'delete' | 'erase';

/** What can be done with a session as a whole. What cannot be taken back wants its id typed. */
export function Actions({ store }: { store: SessionStore }) {
  const [open, setOpen] = useState<Action | undefined>(undefined);
  const { id } = store;
  const session = store.session.value;
  const close = (): void => {
    setOpen(undefined);
  };
  const button = (action: Action, name: string) => (
    <button
      type="button"
      onClick={() => {
        setOpen(action);
      }}
    >
      {name}
    </button>
  );
  return (
    <div class="buttons">
      {session && button('rename', 'Rename')}
      <button
        type="button"
        onClick={() =>
          void attempt(async () => {
            download(`${id}.jsonl`, 'application/jsonl', await exportOf(await store.trail.all()));
          })
        }
      >
        Export
      </button>
      {session && button('reset', 'Reset')}
      {session && button('delete', 'Delete')}
      {button('erase', 'Erase')}
      {open === 'rename' && (
        <ActionDialog
          title="Rename"
          action="Rename"
          onClose={close}
          run={async (form) => {
            await call('patch', '/v1/sessions/{id}', {
              path: { id },
              body: { title: textIn(form, 'title') ?? null },
            });
            await store.refresh();
          }}
        >
          <label>
            <span>Title</span>
            <input name="title" maxLength={300} dir="auto" defaultValue={session?.title ?? ''} />
          </label>
        </ActionDialog>
      )}
      {open === 'reset' && (
        <ActionDialog
          title="Reset"
          action="Reset"
          onClose={close}
          run={async (form) => {
            await call('post', '/v1/sessions/{id}/reset', { path: { id }, body: reasonIn(form) });
            announce('The history is empty; the log keeps what was said.');
          }}
        >
          <p>
            Empties the history and takes back approvals of tools. The log keeps all of it, and the slider
            goes back to it.
          </p>
          <Reason />
        </ActionDialog>
      )}
      {open === 'delete' && (
        <ActionDialog
          title="Delete"
          action="Delete"
          isDangerous
          confirm={id}
          onClose={close}
          run={async (form) => {
            await call('delete', '/v1/sessions/{id}', { path: { id }, body: reasonIn(form) });
            announce(`${id} is deleted; its audit trail stays.`);
            go(['sessions']);
          }}
        >
          <p>The session ends and leaves all lists. Its audit trail stays, and can be read under its id.</p>
          <Reason />
        </ActionDialog>
      )}
      {open === 'erase' && (
        <ActionDialog
          title="Erase"
          action="Erase for ever"
          isDangerous
          confirm={id}
          onClose={close}
          run={async (form) => {
            const at = textIn(form, 'at');
            const done = await call('post', '/v1/sessions/{id}/erase', {
              path: { id },
              body: { ...reasonIn(form), ...(at !== undefined && { at: new Date(at).toISOString() }) },
            });
            announce(
              'erasedAt' in done
                ? `Erased at ${done.erasedAt}; forks that copied from it: ${done.forks.join(', ') || 'none'}.`
                : `It is going to be erased on ${timeOf(done.at)}.`,
            );
          }}
        >
          <p>
            Destroys the keys of this session: what was said in it cannot be read again by anybody, at any
            moment of it. This cannot be taken back. That things happened, when and by whom, stays.
          </p>
          <label>
            <span>When (now unless given; until then it can be called off)</span>
            <input name="at" type="datetime-local" />
          </label>
          <Reason hint="Is kept, and must name nobody" />
        </ActionDialog>
      )}
    </div>
  );
}

const Reason = ({ hint = 'May be left out' }: { hint?: string }) => (
  <label>
    <span>Reason ({hint.toLowerCase()})</span>
    <input name="reason" maxLength={1000} dir="auto" />
  </label>
);

const reasonIn = (form: FormData): { reason?: string } => {
  const reason = textIn(form, 'reason');
  return reason === undefined ? {} : { reason };
};
