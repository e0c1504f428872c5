import { useState } from 'preact/hooks';
import { tenant as chosen } from '../api/access.js';
import { call } from '../api/client.js';
import { announce, attempt } from '../ui/announce.js';
import { textIn } from '../ui/dialog.js';
import { durationOf, numberOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { useResource } from '../ui/resource.js';

/** What holds for a tenant, and what of it is its own. */
export function Tenants() {
  const [id, setId] = useState(chosen.value === '' ? 'default' : chosen.value);
  const found = useResource(
    (signal) => call('get', '/v1/admin/tenants/{id}', { path: { id }, signal }),
    0,
    id,
  );
  const change = async (form: FormData): Promise<void> => {
    const number = (name: string): number | null =>
      textIn(form, name) === undefined ? null : Number(textIn(form, name));
    const policy = textIn(form, 'capPolicy');
    await call('put', '/v1/admin/tenants/{id}', {
      path: { id },
      body: {
        maxSessions: number('maxSessions'),
        sessionTTL: number('sessionTTL'),
        deleteAfter: number('deleteAfter'),
        eraseAfter: number('eraseAfter'),
        capPolicy: policy === 'reject' || policy === 'evict' ? policy : null,
      },
    });
    announce(`The settings of ${id} are changed.`);
    await found.load();
  };
  // Those of the tenant before must not be changed under the name of this one.
  const settings = found.data?.id === id ? found.data : undefined;
  return (
    <>
      <label class="inline">
        <span>Tenant</span>
        <input
          value={id}
          spellcheck={false}
          onChange={(event) => {
            setId(event.currentTarget.value.trim());
          }}
        />
      </label>
      {found.problem && <Notice problem={found.problem} />}
      {settings && (
        <form
          // The fields of another tenant, or after a change, are other fields.
          key={`${settings.id} ${settings.version}`}
          class="grid"
          onSubmit={(event) => {
            event.preventDefault();
            const form = new FormData(event.currentTarget);
            void attempt(() => change(form));
          }}
        >
          <p>
            {settings.id}: {numberOf(settings.activeSessions)} active sessions. An empty field takes back what
            the tenant has of its own.
          </p>
          <label>
            <span>Active sessions at most (holds: {numberOf(settings.effective.maxSessions)})</span>
            <input
              name="maxSessions"
              type="number"
              min={1}
              defaultValue={settings.own.maxSessions?.toString() ?? ''}
            />
          </label>
          <Duration
            name="sessionTTL"
            what="Time to live in ms"
            own={settings.own.sessionTTL}
            holds={settings.effective.sessionTTL}
          />
          <Duration
            name="deleteAfter"
            what="Deleted so many ms after its expiry"
            own={settings.own.deleteAfter}
            holds={settings.effective.deleteAfter}
          />
          <Duration
            name="eraseAfter"
            what="Erased so many ms after its end"
            own={settings.own.eraseAfter}
            holds={settings.effective.eraseAfter}
          />
          <label>
            <span>At the cap (holds: {settings.effective.capPolicy})</span>
            <select name="capPolicy" defaultValue={settings.own.capPolicy ?? ''}>
              <option value="">as the settings have it</option>
              <option value="reject">reject</option>
              <option value="evict">evict</option>
            </select>
          </label>
          <button type="submit" class="primary">
            Change
          </button>
        </form>
      )}
    </>
  );
}

function Duration(props: { name: string; what: string; own: number | undefined; holds: number | undefined }) {
  const { name, what, own, holds } = props;
  return (
    <label>
      <span>
        {what} (holds: {holds === undefined ? 'never' : durationOf(holds)})
      </span>
      <input name={name} type="number" min={1} defaultValue={own?.toString() ?? ''} />
    </label>
  );
}
