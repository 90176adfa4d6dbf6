declare module "emoji-picker-element-data/*/data.json" {
  const emoji: { annotation: string; emoji: string; group: number; tags?: string[] }[];
  export default emoji;
}

interface Window {
  // biome-ignore lint/suspicious/noExplicitAny: TypeScript knows no speech recognition
  webkitSpeechRecognition?: any;
  // biome-ignore lint/suspicious/noExplicitAny: as above
  SpeechRecognition?: any;
}
