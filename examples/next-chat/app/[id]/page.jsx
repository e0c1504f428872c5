import { Chat } from './chat.jsx';

const colloquy = process.env.COLLOQUY_URL ?? 'http://127.0.0.1:3000';

export const dynamic = 'force-dynamic';

/** The chat with its history, which Colloquy keeps. */
export default async function Page({ params }) {
  const { id } = await params;
  const answer = await fetch(`${colloquy}/ai-sdk/chat/${id}/messages`, { cache: 'no-store' });
  return <Chat id={id} messages={answer.ok ? await answer.json() : []} />;
}
