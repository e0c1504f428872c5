/** Where a server of a database may be reached. */
export interface Host {
  readonly host: string;
  readonly port: number;
}

const PORT = 5432;
/** Scheme and credentials, hosts, and the rest of a URL in libpq's form: `postgres://user:password@a:5432,b:5432/name`. */
const PARTS = /^(postgres(?:ql)?:\/\/(?:[^/?]*@)?)([^/?]*)(.*)$/s;

/**
 * The hosts of a URL, and the same URL with the first of them alone, which the driver and `URL` understand. A URL of one
 * host is left as it is.
 */
export function hostsOf(url: string): { readonly url: string; readonly hosts: readonly Host[] } {
  const [, before = '', authority = '', behind = ''] = PARTS.exec(url) ?? [];
  const texts = authority.split(',');
  const [first = ''] = texts;
  const hosts = texts.map((text) => {
    const [, host = '', port] = /^(\[[^\]]*\]|[^:]*)(?::(\d+))?$/.exec(text) ?? [];
    return { host: host.replace(/^\[(.*)\]$/, '$1') || 'localhost', port: Number(port ?? PORT) };
  });
  return { url: texts.length > 1 ? before + first + behind : url, hosts };
}
