import { redirect } from 'next/navigation';

export const dynamic = 'force-dynamic';

/** A new chat. Its id is the id of the session. */
export default function Page() {
  redirect(`/${crypto.randomUUID()}`);
}
