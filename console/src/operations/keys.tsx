import { useState } from 'preact/hooks';
import { call } from '../api/client.js';
import { announce } from '../ui/announce.js';
import { ActionDialog, Dialog, textIn } from '../ui/dialog.js';
import { timeOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { useResource } from '../ui/resource.js';
import { Table } from '../ui/table.js';

type Key = Awaited<ReturnType<typeof call<'get', '/v1/admin/keys'>>>['data'][number];

const SCOPES = ['sessions:read', 'sessions:write', 'generate', 'audit:read', 'erase', 'admin'] as const;

/** API keys in the database. A new one is shown once. */
export function Keys() {
  const keys = useResource((signal) => call('get', '/v1/admin/keys', { query: { limit: 200 }, signal }));
  const [isCreating, setCreating] = useState(false);
  const [made, setMade] = useState<string | undefined>(undefined);
  const [revoked, setRevoked] = useState<Key | undefined>(undefined);
  const create = async (form: FormData): Promise<void> => {
    const scopes = SCOPES.filter((scope) => form.getAll('scopes').includes(scope));
    const expires = textIn(form, 'expiresAt');
    const { key } = await call('post', '/v1/admin/keys', {
      body: {
        tenant: textIn(form, 'tenant') ?? '',
        name: textIn(form, 'name') ?? '',
        ...(scopes.length > 0 && { scopes: [...scopes] }),
        ...(expires !== undefined && { expiresAt: new Date(expires).toISOString() }),
      },
    });
    setMade(key);
    await keys.load();
  };
  if (keys.problem) return <Notice problem={keys.problem} />;
  if (!keys.data) return null;
  return (
    <>
      <div class="buttons">
        <button
          type="button"
          onClick={() => {
            setCreating(true);
          }}
        >
          New key
        </button>
      </div>
      {keys.data.data.length === 0 ? (
        <p>There are no keys in the database; those of the settings are not listed.</p>
      ) : (
        <Table of="keys" columns={['Name', 'Tenant', 'Scopes', 'Made', 'Until', 'Actions']}>
          {keys.data.data.map((key) => (
            <tr key={key.id}>
              <th scope="row">{key.name}</th>
              <td>{key.tenant}</td>
              <td>{key.scopes.join(', ')}</td>
              <td>
                {timeOf(key.createdAt)} by {key.createdBy}
              </td>
              <td>
                {key.revokedAt !== null
                  ? `revoked ${timeOf(key.revokedAt)}`
                  : key.expiresAt !== null
                    ? timeOf(key.expiresAt)
                    : 'for ever'}
              </td>
              <td>
                <div class="buttons">
                  {key.revokedAt === null && (
                    <button
                      type="button"
                      aria-label={`Revoke ${key.name}`}
                      onClick={() => {
                        setRevoked(key);
                      }}
                    >
                      Revoke
                    </button>
                  )}
                </div>
              </td>
            </tr>
          ))}
        </Table>
      )}
      {keys.data.nextCursor !== null && <p>There are more; `colloquy keys list` has all of them.</p>}
      {isCreating && (
        <ActionDialog
          title="New key"
          action="Create"
          onClose={() => {
            setCreating(false);
          }}
          run={create}
        >
          <label>
            <span>Tenant (* for an operator)</span>
            <input name="tenant" required spellcheck={false} />
          </label>
          <label>
            <span>Name, the actor of what its holder does</span>
            <input name="name" required spellcheck={false} />
          </label>
          <fieldset>
            <legend>Scopes (all but admin unless you choose; all for an operator)</legend>
            {SCOPES.map((scope) => (
              <label key={scope} class="check">
                <input type="checkbox" name="scopes" value={scope} /> {scope}
              </label>
            ))}
          </fieldset>
          <label>
            <span>Until (for ever unless given)</span>
            <input name="expiresAt" type="datetime-local" />
          </label>
        </ActionDialog>
      )}
      {made !== undefined && (
        <Dialog
          title="The new key"
          onClose={() => {
            setMade(undefined);
          }}
        >
          <p>It is shown this once. Only its hash is kept.</p>
          <p class="id secret">{made}</p>
          <div class="buttons">
            <button
              type="button"
              class="primary"
              onClick={() => {
                setMade(undefined);
              }}
            >
              I have it
            </button>
          </div>
        </Dialog>
      )}
      {revoked && (
        <ActionDialog
          title="Revoke a key"
          action="Revoke"
          isDangerous
          confirm={revoked.name}
          onClose={() => {
            setRevoked(undefined);
          }}
          run={async () => {
            await call('delete', '/v1/admin/keys/{id}', { path: { id: revoked.id } });
            announce(`${revoked.name} is revoked; all nodes refuse it within five seconds.`);
            await keys.load();
          }}
        >
          <p>Whoever holds it is refused from then on. It cannot be made valid again.</p>
        </ActionDialog>
      )}
    </>
  );
}
